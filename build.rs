//! Tells the linker which functions a tunnel runs, so that they lie side by side and the rest of the program takes no
//! memory; `benches/tunnel/hot-functions` says more.

#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "standard output and the environment are how cargo speaks with a build script"
)]

use std::{env, path::Path};

const LIST: &str = "benches/tunnel/hot-functions.ld";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={LIST}");
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|found| found == value);
    // The list is a linker script that only adds a section, as GNU ld and lld take it; mold takes none.
    let mold = env::var("CARGO_ENCODED_RUSTFLAGS").is_ok_and(|flags| flags.contains("mold"));
    if is("CARGO_CFG_TARGET_OS", "linux")
        && is("CARGO_CFG_TARGET_ENV", "gnu")
        && !is("OPT_LEVEL", "0")
        && !mold
    {
        let root = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo:rustc-link-arg-bin=broker=-Wl,-T,{}", Path::new(&root).join(LIST).display());
    }
}
