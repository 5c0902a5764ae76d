//! Paths: whatever is accepted has one spelling, which is its own canonical form, climbs nowhere and means the same in both modes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use postern_gate::path::{CanonicalPath, PathMode};

fuzz_target!(|raw: &str| {
    let strict = CanonicalPath::parse(raw, PathMode::Strict);
    let loose = CanonicalPath::parse(raw, PathMode::Loose);
    if let Ok(strict) = &strict {
        let loose = loose.as_ref().expect("loose takes what strict takes");
        assert_eq!(strict.as_str(), loose.as_str());
        let path = strict.as_str();
        assert!(!path.contains("//") && !path.contains(';') && !path.contains("%2F"), "{path:?}");
    }
    for (parsed, mode) in [(&strict, PathMode::Strict), (&loose, PathMode::Loose)] {
        let Ok(parsed) = parsed else { continue };
        let path = parsed.as_str();
        assert!(path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic()), "{path:?}");
        assert!(!path.contains(['\\', '?', '#']), "{path:?}");
        assert!(path.split('/').all(|segment| segment != "." && segment != ".."), "{path:?}");
        let again = CanonicalPath::parse(path, mode).expect("what is canonical is accepted");
        assert_eq!(again.as_str(), path);
        for prefix in ["/", "/billing", "/billing/"] {
            if let Some(rest) = parsed.strip_prefix(prefix) {
                assert!(rest.as_str().starts_with('/'), "{path:?} without {prefix}: {:?}", rest.as_str());
            }
        }
    }
});
