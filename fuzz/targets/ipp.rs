//! IPP messages: never a panic; what can be read can be written and reads the same again; both ways of finding the end agree.
#![no_main]

use device::ipp::{Attribute, Message, Operation, Value, encode, group};

fn inputs() -> Vec<Vec<u8>> {
    let mut print = Message::request(Operation::PrintJob, 1);
    print
        .group_mut(group::OPERATION)
        .put("attributes-charset", Value::Charset("utf-8".into()))
        .put("attributes-natural-language", Value::Language("en".into()))
        .put("printer-uri", Value::uri("ipp://localhost/ipp/print"))
        .put("requesting-user-name", Value::name("anna"))
        .put("document-format", Value::MimeType("application/pdf".into()));
    let size = Value::Collection(vec![
        Attribute::one("x-dimension", Value::Integer(21_000)),
        Attribute::one("y-dimension", Value::Integer(29_700)),
    ]);
    print
        .group_mut(group::JOB)
        .put("copies", Value::Integer(2))
        .put("sides", Value::keyword("two-sided-long-edge"))
        .put("media-col", Value::Collection(vec![Attribute::one("media-size", size)]))
        .put_all("page-ranges", [Value::Range(1, 3), Value::Range(5, 9)]);
    let with_document = [&encode(&print)[..], b"%PDF-1.4"].concat();
    vec![encode(&print).to_vec(), with_document, encode(&Message::request(Operation::GetPrinterAttributes, 7)).to_vec()]
}

libfuzzer_sys::fuzz_target!(init: seeds::plant(inputs), |data: &[u8]| device::ipp::codec::fuzz(data));
