//! Queries for names, and the first bytes of connections, which may say one.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| aegis_net::fuzz::names(bytes));
