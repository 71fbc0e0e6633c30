//! Status details and the headers they travel in.
#![no_main]

use common::error::{Error, Reason};

fn inputs() -> Vec<Vec<u8>> {
    let error = Error::new(Reason::PathInvalid, "no").why_is("because").fix_is("do something else");
    vec![common::status::to_status(&error).details().to_vec(), b"7".to_vec(), b"a%20b".to_vec(), b"CAESAm5v".to_vec()]
}

libfuzzer_sys::fuzz_target!(init: seeds::plant(inputs), |data: &[u8]| common::status::fuzz_details(data));
