//! The threat model names the tests that show its lines: each of them is there, so that it stays true as tests come and go.

use std::path::Path;

use anyhow::{Context, Result, ensure};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Whether `file` (without its ending) has a test of this name.
fn has(file: &Path, test: &str) -> Result<bool> {
    let path = file.with_extension("rs");
    let source = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    // Its attribute, or the macro of properties, stands before it.
    Ok(source.find(&format!("fn {test}(")).is_some_and(|at| source[..at].contains("test")))
}

#[test]
fn the_threat_model_names_tests_that_are_there() -> Result<()> {
    let document = std::fs::read_to_string(Path::new(ROOT).join("docs/threat-model.md"))?;
    let is_name = |text: &str| {
        text.contains('_')
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
    };
    let mut named = 0;
    for quoted in document.split('`').skip(1).step_by(2) {
        let (file, test) = match (quoted.split_once(": "), quoted.rsplit_once("::")) {
            (Some((file, test)), _) if file.contains("/src/") => (Path::new(ROOT).join(file), test),
            (None, Some((module, test))) => {
                (Path::new(ROOT).join("tests/e2e").join(module.replace("::", "/")), test)
            }
            _ => continue,
        };
        ensure!(is_name(test), "{quoted:?} names no test");
        ensure!(has(&file, test)?, "there is no test {quoted}");
        named += 1;
    }
    ensure!(named > 60, "{named} tests are named");
    Ok(())
}
