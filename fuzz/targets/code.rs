//! Enrolment codes and servers' addresses, as people type them: what is accepted is written and read again the same.
#![no_main]

use common::enrol::Code;
use common::rpc::ServerAddress;

fn inputs() -> Vec<Vec<u8>> {
    let mut inputs = seeds::texts(["server.example:7443", "[fd00::1]:7443", "10.0.0.1", "42 AMBER lion.canal"]);
    inputs.push(Code::generate(7).reveal().into_bytes());
    inputs
}

libfuzzer_sys::fuzz_target!(init: seeds::plant(inputs), |data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(code) = text.parse::<Code>() {
        assert_eq!(code.reveal().parse::<Code>().ok(), Some(code));
    }
    if let Ok(address) = text.parse::<ServerAddress>() {
        assert!(address.port() != 0 && !address.host().is_empty());
        assert_eq!(address.to_string().parse::<ServerAddress>().ok(), Some(address));
    }
});
