//! Methods in rules that are probably misspelt. Takes what a rule's `to` says; gives a warning where a method is no registered one, but
//! nearly one. Any other method may well be meant: HTTP lets services have their own.

/// <https://www.iana.org/assignments/http-methods>, without what no rule can name.
const REGISTERED: [&str; 37] = [
    "ACL",
    "BASELINE-CONTROL",
    "BIND",
    "CHECKIN",
    "CHECKOUT",
    "COPY",
    "DELETE",
    "GET",
    "HEAD",
    "LABEL",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MKREDIRECTREF",
    "MKWORKSPACE",
    "MOVE",
    "OPTIONS",
    "ORDERPATCH",
    "PATCH",
    "POST",
    "PROPFIND",
    "PROPPATCH",
    "PUT",
    "QUERY",
    "REBIND",
    "REPORT",
    "SEARCH",
    "UNBIND",
    "UNCHECKOUT",
    "UNLINK",
    "UNLOCK",
    "UPDATE",
    "UPDATEREDIRECTREF",
    "VERSION-CONTROL",
];

/// One for each such method of `GET,POST /path`; `at` says where it is written.
pub(super) fn doubts(at: &str, to: &str) -> Vec<String> {
    let methods = to.split_once(' ').map_or("", |(methods, _)| methods);
    let doubt = |method: &str| {
        if method == "*" || method == "CONNECT" || REGISTERED.contains(&method) {
            return None;
        }
        // One letter wrong, missing, too many, or two exchanged.
        let near = REGISTERED.iter().find(|known| strsim::osa_distance(known, method) == 1)?;
        Some(format!("{at}: {to:?}: there is no method {method:?} in HTTP: did you mean {near}?"))
    };
    methods.split(',').filter_map(doubt).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_method_is_doubted_and_a_services_own_is_not() {
        let found = doubts("services.wiki.rules.0.to", "GTE,POST,PURGE /**");
        let said = "services.wiki.rules.0.to: \"GTE,POST,PURGE /**\": there is no method \"GTE\" in HTTP: did you mean GET?";
        assert_eq!(found, [said]);
        for good in ["GET,HEAD /**", "* /**", "CONNECT", "MKCOL /dav/**"] {
            assert!(doubts("rules.0.to", good).is_empty(), "{good}");
        }
    }
}
