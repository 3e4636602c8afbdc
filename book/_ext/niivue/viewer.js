// What the page on cases uses of NiiVue; see package.json for how it is bundled.
export { NVImage, Niivue } from "@niivue/niivue";
