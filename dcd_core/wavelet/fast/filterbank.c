/* Filter banks over volumes, on a processor: split into bands, join bands, measure their energy.

Along an axis, coefficient k of a half, low or high, is

    sum_j  filter[j] * extended[step * k + j],    j < taps,

where `extended` is the axis, periodic or between zeros, whose entry `lead` is sample 0. To join is
the transpose of that.

Volumes and bands are float32 (d, h, w), contiguous. A plane of coefficients along D is filtered
along H and W at once, so that all but the volume itself stays in the nearest caches, and all
levels of an energy are done with one volume before the next. A volume is the work of one thread.
All filtering is `combine`: sums of a few rows, times numbers. */

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* One build serves all processors of its kind: what they can is asked when it is loaded. */
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__gnu_linux__)
#define FOR_EACH_PROCESSOR \
    __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif
#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

enum {
    HALVES = 2,
    BANDS = 8,    /* 4 D + 2 H + W, with low 0 and high 1 */
    TERMS = 8,    /* rows summed up at a time, whose factors stay in registers */
    CHUNK = 1024, /* floats of a plane: as many for each tap stay in the first cache */
    LINE = 16     /* floats of a line of a cache */
};

/* The structures are laid out again in filters.py. */
typedef struct {
    int samples, coefficients, taps, step, lead, periodic;
    const float *filters[HALVES];
} Axis;

/* One level of an energy, of axes that are orthonormal. With `base` the volume stands for all its
   bands, and those reached are taken away; without, those reached are added up. The coarse band is
   weighed for itself if it is `coarse`; the energy of what lies deeper in it counts `deeper`. */
typedef struct {
    Axis axes[3];
    int base, coarse, reached[BANDS];
    double deeper;
} Level;

typedef struct {
    float *room;
    const float **from;
} Work;

/* --- sums of rows ----------------------------------------------------------------------------- */

typedef struct {
    ptrdiff_t rows, count;
} Size;

INLINE void combine_few(float *restrict to, ptrdiff_t to_row, const float *const *from,
                        ptrdiff_t from_row, const float *factors, int terms, Size size, int add) {
    const float *p[TERMS];
    float f[TERMS];
    for (int t = 0; t < terms; t++) p[t] = from[t], f[t] = factors[t];
    for (ptrdiff_t r = 0; r < size.rows; r++) {
        for (ptrdiff_t i = 0; i < size.count; i++) {
            float sum = add ? to[i] : 0;
            for (int t = 0; t < terms; t++) sum += f[t] * p[t][i];
            to[i] = sum;
        }
        to += to_row;
        for (int t = 0; t < terms; t++) p[t] += from_row;
    }
}

/* to = (to +) sum_t factors[t] * from[t], for rows of numbers, so far apart there and here. The
   loop is fast where the compiler knows how many terms there are, hence the cases. */
INLINE void combine(float *to, ptrdiff_t to_row, const float *const *from, ptrdiff_t from_row,
                    const float *factors, int terms, Size size, int add) {
    while (terms > 0) {
        const int now = terms < TERMS ? terms : TERMS;
        switch (2 * now + add) {
#define CASE(n) \
    case 2 * n: combine_few(to, to_row, from, from_row, factors, n, size, 0); break; \
    case 2 * n + 1: combine_few(to, to_row, from, from_row, factors, n, size, 1); break;
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#undef CASE
        }
        from += now, factors += now, terms -= now, add = 1;
    }
}

/* In slices, as one float sum would drift. */
FOR_EACH_PROCESSOR
static double squared_norm(const float *x, ptrdiff_t count) {
    enum { SLICE = 1024, LANES = 32 };
    double total = 0;
    for (ptrdiff_t begin = 0; begin < count; begin += SLICE) {
        const ptrdiff_t end = count - begin < SLICE ? count : begin + SLICE;
        float lanes[LANES] = {0};
        ptrdiff_t i = begin;
        for (; i + LANES <= end; i += LANES)
            for (int l = 0; l < LANES; l++) lanes[l] += x[i + l] * x[i + l];
        for (; i < end; i++) lanes[0] += x[i] * x[i];
        for (int l = 0; l < LANES; l++) total += lanes[l];
    }
    return total;
}

/* --- one volume ------------------------------------------------------------------------------- */

INLINE int extent(Axis axis) { return axis.step * (axis.coefficients - 1) + axis.taps; }

INLINE int inside(Axis axis, int i) { return i >= axis.lead && i < axis.lead + axis.samples; }

/* The sample at an entry of the extended axis, or -1 where that is zero. */
INLINE int source(Axis axis, int i) {
    if (inside(axis, i)) return i - axis.lead;
    if (!axis.periodic) return -1;
    const int sample = (i - axis.lead) % axis.samples;
    return sample < 0 ? sample + axis.samples : sample;
}

/* Coefficients that a sample is made of, of one half. */
INLINE int reach(Axis axis) { return (axis.taps + axis.step - 1) / axis.step; }

INLINE ptrdiff_t lines(ptrdiff_t count) { return (count + LINE - 1) / LINE * LINE; }

/* So many floats before a row, that its samples begin where a line does. */
INLINE int shift(Axis axis) { return (int)(lines(axis.lead) - axis.lead); }

INLINE ptrdiff_t samples(const Axis *axes) {
    return (ptrdiff_t)axes[0].samples * axes[1].samples * axes[2].samples;
}

INLINE ptrdiff_t coefficients(const Axis *axes) {
    return (ptrdiff_t)axes[0].coefficients * axes[1].coefficients * axes[2].coefficients;
}

/* Rows that are ever summed up, whichever axis they are of. */
INLINE ptrdiff_t most_terms(const Axis *axes) {
    ptrdiff_t most = 0;
    for (int i = 0; i < 3; i++) most = axes[i].taps > most ? axes[i].taps : most;
    return HALVES * most;
}

INLINE float *take(float **room, ptrdiff_t count) {
    float *taken = *room;
    *room += lines(count);
    return taken;
}

INLINE int any(float *const *bands, int count) {
    for (int b = 0; b < count; b++)
        if (bands[b]) return 1;
    return 0;
}

/* The bands that are wanted, not NULL, of a volume. */
FOR_EACH_PROCESSOR
static void split(const float *x, const Axis *axes, float *const *bands, Work work) {
    const Axis D = axes[0], H = axes[1], W = axes[2];
    const ptrdiff_t plane = (ptrdiff_t)H.samples * W.samples, pitch = lines(extent(W));
    const ptrdiff_t half = pitch / W.step, along = H.coefficients * half;
    const float **from = work.from;
    float *room = work.room, *zeros = take(&room, plane), *sums = take(&room, along);
    const ptrdiff_t high = (ptrdiff_t)extent(H) * W.samples;
    float *halves[HALVES] = {take(&room, high), take(&room, high)};
    /* Filtered along H: rows with their border, and every second entry of them. */
    float *q = take(&room, H.coefficients * pitch + LINE + W.taps) + shift(W);
    float *apart[2] = {q, q};
    for (int s = 0; W.step == 2 && s < 2; s++) apart[s] = take(&room, along + W.taps);
    memset(zeros, 0, plane * sizeof(float));
    for (int k = 0; k < D.coefficients; k++) {
        for (ptrdiff_t begin = 0; begin < plane; begin += CHUNK) {
            const Size chunk = {1, plane - begin < CHUNK ? plane - begin : CHUNK};
            for (int j = 0; j < D.taps; j++) {
                const int s = source(D, D.step * k + j);
                from[j] = (s < 0 ? zeros : x + s * plane) + begin;
            }
            for (int a = 0; a < HALVES; a++)
                if (any(bands + 4 * a, 4))
                    combine(halves[a] + H.lead * W.samples + begin, 0, from, 0, D.filters[a],
                            D.taps, chunk, 0);
        }
        for (int a = 0; a < HALVES; a++) {
            if (!any(bands + 4 * a, 4)) continue;
            float *p = halves[a], *middle = p + H.lead * W.samples;
            for (int i = 0; i < extent(H); i++) {
                if (inside(H, i)) continue;
                const int s = source(H, i);
                const float *row = s < 0 ? zeros : middle + s * W.samples;
                memcpy(p + i * W.samples, row, W.samples * sizeof(float));
            }
            for (int b = 0; b < HALVES; b++) {
                float *const *to = bands + 4 * a + 2 * b;
                if (!any(to, 2)) continue;
                for (int j = 0; j < H.taps; j++) from[j] = p + j * W.samples;
                combine(q + W.lead, pitch, from, H.step * W.samples, H.filters[b], H.taps,
                        (Size){H.coefficients, W.samples}, 0);
                for (int i = 0; i < extent(W); i++) {
                    if (inside(W, i)) continue;
                    const int s = source(W, i);
                    for (int r = 0; r < H.coefficients; r++)
                        q[r * pitch + i] = s < 0 ? 0 : q[r * pitch + W.lead + s];
                }
                for (int s = 0; W.step == 2 && s < 2; s++)
                    for (ptrdiff_t i = 0; i < along; i++) apart[s][i] = q[2 * i + s];
                for (int j = 0; j < W.taps; j++) from[j] = apart[j % W.step] + j / W.step;
                for (int c = 0; c < HALVES; c++) {
                    if (!to[c]) continue;
                    combine(sums, 0, from, 0, W.filters[c], W.taps, (Size){1, along}, 0);
                    float *out = to[c] + (ptrdiff_t)k * H.coefficients * W.coefficients;
                    for (int r = 0; r < H.coefficients; r++, out += W.coefficients)
                        memcpy(out, sums + r * half, W.coefficients * sizeof(float));
                }
            }
        }
    }
}

/* A volume out of bands, times `sign`, or added to it. */
FOR_EACH_PROCESSOR
static void join(float *x, const Axis *axes, float *const *bands, float sign, int add, Work work) {
    const Axis D = axes[0], H = axes[1], W = axes[2];
    const ptrdiff_t plane = (ptrdiff_t)H.samples * W.samples;
    const ptrdiff_t half = lines(W.coefficients + reach(W)), pitch = W.step * half;
    const ptrdiff_t along = H.coefficients * half;
    const ptrdiff_t count = (H.coefficients + 2 * reach(H)) * pitch + LINE;
    const float **from = work.from;
    float *room = work.room, *factors = take(&room, most_terms(axes));
    const ptrdiff_t high = (ptrdiff_t)extent(H) * W.samples;
    float *halves[HALVES] = {take(&room, high), take(&room, high)};
    /* Coefficients that do not exist count as zeros: between rows, and around planes. */
    float *pair[HALVES] = {take(&room, reach(W) + along), take(&room, reach(W) + along)};
    float *q = take(&room, count), *apart[2];
    for (int c = 0; c < HALVES; c++) {
        memset(pair[c], 0, (reach(W) + along) * sizeof(float));
        pair[c] += reach(W);
    }
    memset(q, 0, count * sizeof(float));
    q += shift(W) + reach(H) * pitch;
    for (int s = 0; s < 2; s++) apart[s] = W.step == 2 ? take(&room, along) : q;
    if (!add) memset(x, 0, D.samples * plane * sizeof(float));
    for (int k = 0; k < D.coefficients; k++) {
        for (int a = 0; a < HALVES; a++) {
            float *p = halves[a];
            int begun = 0;
            for (int b = 0; b < HALVES; b++) {
                float *const *of = bands + 4 * a + 2 * b;
                if (!any(of, 2)) continue;
                for (int c = 0; c < HALVES; c++) {
                    if (!of[c]) continue;
                    const float *in = of[c] + (ptrdiff_t)k * H.coefficients * W.coefficients;
                    for (int r = 0; r < H.coefficients; r++)
                        for (int i = 0; i < W.coefficients; i++)
                            pair[c][r * half + i] = sign * *in++;
                }
                for (int s = 0; s < W.step; s++) {
                    int terms = 0;
                    for (int c = 0; c < HALVES; c++)
                        for (int t = 0; of[c] && s + t * W.step < W.taps; t++) {
                            factors[terms] = W.filters[c][s + t * W.step];
                            from[terms++] = pair[c] - t;
                        }
                    combine(apart[s], 0, from, 0, factors, terms, (Size){1, along}, 0);
                }
                for (int s = 0; W.step == 2 && s < 2; s++)
                    for (ptrdiff_t i = 0; i < along; i++) q[2 * i + s] = apart[s][i];
                for (int i = 0; i < extent(W); i++) {
                    const int s = source(W, i);
                    if (inside(W, i) || s < 0) continue;
                    for (int r = 0; r < H.coefficients; r++)
                        q[r * pitch + W.lead + s] += q[r * pitch + i];
                }
                for (int s = 0; s < H.step; s++) {
                    int terms = 0;
                    for (int j = s; j < H.taps; j += H.step, terms++) {
                        factors[terms] = H.filters[b][j];
                        from[terms] = q + W.lead - terms * pitch;
                    }
                    combine(p + s * W.samples, H.step * W.samples, from, pitch, factors, terms,
                            (Size){(extent(H) - s + H.step - 1) / H.step, W.samples}, begun);
                }
                begun = 1;
            }
            for (int i = 0; begun && i < extent(H); i++) {
                if (inside(H, i) || source(H, i) < 0) continue;
                float *to = p + (H.lead + source(H, i)) * W.samples;
                for (int w = 0; w < W.samples; w++) to[w] += p[i * W.samples + w];
            }
        }
        for (int j = 0; j < D.taps; j++) {
            const int s = source(D, D.step * k + j);
            if (s < 0) continue;
            int terms = 0;
            for (int a = 0; a < HALVES; a++) {
                if (!any(bands + 4 * a, 4)) continue;
                factors[terms] = D.filters[a][j];
                from[terms++] = halves[a] + H.lead * W.samples;
            }
            combine(x + s * plane, 0, from, 0, factors, terms, (Size){1, plane}, 1);
        }
    }
}

/* The energy of a volume, and half its gradient in place of it. Levels lie in `room`. */
static double energy(float *x, const Level *level, int levels, float *room, Work work) {
    const ptrdiff_t count = coefficients(level->axes);
    float *bands[BANDS];
    for (int b = 0; b < BANDS; b++) bands[b] = level->reached[b] ? take(&room, count) : NULL;
    split(x, level->axes, bands, work);

    double value = 0, along_coarse = 0;
    if (bands[0]) {
        const float deeper = (float)level->deeper;
        float *own = bands[0], *whole = take(&room, count);
        if (level->coarse) value += squared_norm(own, count);
        memcpy(whole, own, count * sizeof(float));
        if (deeper != 0)
            value += level->deeper * (levels > 1 ? energy(whole, level + 1, levels - 1, room, work)
                                                 : squared_norm(whole, count));
        for (ptrdiff_t i = 0; i < count; i++) {
            whole[i] = deeper * whole[i] + (level->coarse ? own[i] : 0);
            own[i] = level->base ? own[i] - whole[i] : whole[i];
        }
        if (level->base) along_coarse = squared_norm(whole, count);
    }
    if (!level->base) {
        for (int b = 1; b < BANDS; b++)
            if (bands[b]) value += squared_norm(bands[b], count);
        join(x, level->axes, bands, 1, 0, work);
        return value;
    }
    join(x, level->axes, bands, -1, 1, work);
    /* The bands' own energy. Rounding may leave less than nothing of a difference. */
    const double here = squared_norm(x, samples(level->axes)) - along_coarse;
    return here < 0 ? value : value + here;
}

/* --- many volumes ----------------------------------------------------------------------------- */

/* What `split` and `join` work in, and before it `levels` floats. */
static Work allocate(const Axis *axes, ptrdiff_t levels) {
    const Axis H = axes[1], W = axes[2];
    const ptrdiff_t high = extent(H) + 2 * reach(H), wide = extent(W) + 2 * (W.taps + LINE);
    const ptrdiff_t terms = most_terms(axes);
    const ptrdiff_t floats = levels + lines(terms) + 8 * lines(high * wide);
    const Work work = {malloc((floats + LINE) * sizeof(float)), malloc(terms * sizeof(float *))};
    return work;
}

static void release(Work work) {
    free(work.from);
    free(work.room);
}

/* From where a line of a cache begins. */
static Work begin(Work allocated) {
    allocated.room += -((uintptr_t)allocated.room / sizeof(float)) % LINE;
    return allocated;
}

/* Split volumes, or join them on the way `back`. `bands` are those of the first volume, NULL
   where there is none; those of the others follow. Returns 0, or 1 where memory ran out. */
int filter_volumes(float *x, ptrdiff_t volumes, const Axis *axes, float *const *bands, int back,
                   int threads) {
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        const Work work = allocate(axes, 0);
        failed = !work.room || !work.from;
#pragma omp for
        for (ptrdiff_t v = 0; v < volumes; v++) {
            float *own[BANDS];
            for (int b = 0; b < BANDS; b++)
                own[b] = bands[b] ? bands[b] + v * coefficients(axes) : NULL;
            if (failed) continue;
            if (back)
                join(x + v * samples(axes), axes, own, 1, 0, begin(work));
            else
                split(x + v * samples(axes), axes, own, begin(work));
        }
        release(work);
    }
    return failed;
}

/* Energies of volumes, each replaced by half the gradient of its own. Returns as above. */
int energies(float *x, ptrdiff_t volumes, const Level *level, int levels, double *values,
             int threads) {
    ptrdiff_t floats = 0;
    for (int l = 0; l < levels; l++) floats += (BANDS + 1) * lines(coefficients(level[l].axes));
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        const Work work = allocate(level->axes, floats);
        failed = !work.room || !work.from;
#pragma omp for
        for (ptrdiff_t v = 0; v < volumes; v++)
            if (!failed) {
                const Work own = begin(work), after = {own.room + floats, own.from};
                values[v] =
                    energy(x + v * samples(level->axes), level, levels, own.room, after);
            }
        release(work);
    }
    return failed;
}
