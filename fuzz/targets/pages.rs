//! Pages of documents: never a panic, whatever kind of document it claims to be.
#![no_main]

use device::printer::pages::raster::white_pwg;

fn inputs() -> Vec<Vec<u8>> {
    let pdf = "%PDF-1.4\n1 0 obj\n<< /Type /Catalog /Pages 2 0 R >>\nendobj\n2 0 obj\n<< /Type /Pages /Kids [3 0 R 4 0 R] \
               /Count 2 >>\nendobj\n3 0 obj\n<< /Type /Page /Parent 2 0 R >>\nendobj\n4 0 obj\n<< /Type /Page /Parent 2 0 R \
               >>\nendobj\n5 0 obj\n<< /Type /ObjStm /N 1 /First 4 /Length 13 >>\nstream\n6 0 << /A 1 >>\nendstream\nendobj\n\
               trailer\n<< /Root 1 0 R /Size 6 >>\n%%EOF\n";
    let mut urf = b"UNIRAST\0\0\0\0\x01".to_vec();
    let mut header = [0; 32];
    header[0] = 24;
    header[12..16].copy_from_slice(&10_u32.to_be_bytes());
    header[16..20].copy_from_slice(&20_u32.to_be_bytes());
    urf.extend_from_slice(&header);
    urf.extend_from_slice(&[9, 9, 1, 2, 3, 9, 254, 1, 1, 1, 2, 2, 2, 3, 3, 3, 128]);
    vec![pdf.into(), urf, white_pwg(2, 20, 30)]
}

libfuzzer_sys::fuzz_target!(init: seeds::plant(inputs), |data: &[u8]| {
    for format in ["application/pdf", "image/pwg-raster", "image/urf"] {
        let _ = device::printer::pages::count(format, data);
    }
    if let Some(format) = device::printer::pages::detect(data) {
        let _ = device::printer::pages::count(format, data);
    }
});
