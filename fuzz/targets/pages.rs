//! Pages of documents: never a panic, whatever kind of document it claims to be.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    for format in ["application/pdf", "image/pwg-raster", "image/urf"] {
        let _ = device::printer::pages::count(format, data);
    }
    if let Some(format) = device::printer::pages::detect(data) {
        let _ = device::printer::pages::count(format, data);
    }
});
