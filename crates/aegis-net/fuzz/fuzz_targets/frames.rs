//! What comes on the link is frames, whatever it is.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| aegis_net::fuzz::link(bytes));
