//! Takes by how much a program's clock is to be off; gives the environment that makes it so, by libfaketime (Debian's package faketime). Only
//! the clock of the day moves: what waits, waits as long as ever.

use std::path::PathBuf;

use anyhow::{Context, Result};

/// `by` as libfaketime reads it: `+9d`, `-4m`.
pub fn off(by: &str) -> Result<Vec<(&'static str, String)>> {
    // Debian has a directory for each architecture.
    let libraries = std::fs::read_dir("/usr/lib")?.flatten();
    let place = |entry: std::fs::DirEntry| entry.path().join("faketime/libfaketimeMT.so.1");
    let library: Option<PathBuf> = libraries.map(place).find(|path| path.exists());
    let library = library.context("libfaketime is missing: install Debian's package faketime")?;
    Ok(vec![
        ("LD_PRELOAD", library.display().to_string()),
        ("FAKETIME", by.to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ])
}
