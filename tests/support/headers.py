"""NIfTI files of a few voxels with headers of any kind, and what nibabel makes of them."""

import nibabel as nib
import numpy as np
from hypothesis import strategies as st

CODES = [2, 4, 8, 16, 64, 256, 512, 768, 1024, 1280]
"""Types of voxels: u1 i2 i4 f4 f8 i1 u2 u4 i8 u8."""
ODD_CODES = [0, 1, 32, 128, 1536, 1792, 2048, 2304, -7]
"""Unknown, binary, complex, colours, long doubles."""
FLOATS = st.sampled_from([0.0, 1.0, -1.0, 0.5, 2.0, 1e-8, 1e30, np.nan, np.inf, -np.inf])
SOUND = {
    "sform_code": st.integers(0, 4),
    "qform_code": st.integers(0, 4),
    "scl_slope": st.sampled_from([1.0, 0.0, 2.0, -0.5, np.nan]),
    "scl_inter": st.sampled_from([0.0, 3.0]),
    "xyzt_units": st.sampled_from([0, 2, 10, 18]),
}
ODD = {
    "sform_code": st.integers(-9, 99),
    "qform_code": st.integers(-9, 99),
    "scl_slope": FLOATS,
    "scl_inter": FLOATS,
    "xyzt_units": st.integers(0, 255),
    "vox_offset": st.sampled_from([0.0, 352.0, 360.0, 100.0, -1.0, 1e9, np.nan, np.inf]),
    "intent_code": st.integers(-1, 3000),
    "bitpix": st.integers(-1, 128),
    "sizeof_hdr": st.sampled_from([348, 0, 540, 1543569408]),
    "magic": st.sampled_from([b"n+1", b"ni1", b"n+2", b"", b"xyz"]),
    "dim_info": st.integers(0, 255),
    "quatern_b": FLOATS,
    "quatern_c": FLOATS,
    "quatern_d": FLOATS,
    "qoffset_x": FLOATS,
    "slice_duration": FLOATS,
}
ODD |= {f"srow_{axis}": st.tuples(*[FLOATS] * 4) for axis in "xyz"}
ODD |= {"pixdim": st.tuples(*[FLOATS] * 8), "dim": st.tuples(*[st.integers(-2, 9)] * 8)}


@st.composite
def headers(draw):
    """A NIfTI file of a few voxels as bytes, and whether its header is sound."""
    shape = draw(st.tuples(*[st.integers(1, 4)] * 3))
    odd = draw(st.integers(0, 2)) > 0
    code = draw(st.sampled_from(ODD_CODES if odd and draw(st.booleans()) else CODES))
    header = nib.Nifti1Header(endianness=draw(st.sampled_from("<>")))
    header["magic"], header["vox_offset"], header["datatype"] = b"n+1", 352, code
    header["dim"] = [3, *shape, 1, 1, 1, 1]
    header["pixdim"] = [draw(st.sampled_from([1, -1])), 1, 2, 3, 0, 0, 0, 0]
    for axis, row in zip("xyz", ([0, -2, 0, 5], [1, 0, 0, -7], [0, 0, 3, 1]), strict=True):
        header[f"srow_{axis}"] = row
    header["quatern_d"], header["qoffset_x"] = 0.6, 4
    for name, values in SOUND.items():
        header[name] = draw(values)
    bits = {2: 8, 4: 16, 8: 32, 16: 32, 64: 64, 256: 8, 512: 16, 768: 32, 1024: 64, 1280: 64}
    header["bitpix"] = bits.get(code, 32)
    if odd:
        for name in draw(st.lists(st.sampled_from([*ODD]), max_size=2)):
            header[name] = draw(ODD[name])
    rng, count = np.random.default_rng(draw(st.integers(0, 99))), int(np.prod(shape))
    values = rng.integers(0, 100, count).astype(bits_type(header, code)).tobytes()
    return header.binaryblock + bytes(4) + values + bytes(draw(st.sampled_from([0, 8]))), not odd


def bits_type(header, code):
    """The type of voxels, in the byte order of the header."""
    kinds = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4"}
    kinds |= {1024: "i8", 1280: "u8"}
    return np.dtype(header.endianness + kinds.get(code, "u4"))


def by_nibabel(path):
    """Voxels and affine as nibabel gives them, None where it gives none."""
    try:
        stored = nib.load(path)
        array = np.asarray(stored.dataobj, np.float32)
        return array.reshape(array.shape[:3]), stored.affine
    except Exception:  # it has an error of its own for every field
        return None
