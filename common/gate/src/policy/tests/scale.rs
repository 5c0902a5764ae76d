//! What a decision costs does not grow with the number of rules: steps are counted, not time.

use postern_base::config::Source;
use proptest::prelude::*;

use super::super::index::work::STEPS;
use super::*;
use crate::cost;

/// Policies of `count` rules in one service: for other roles, for other paths, for both, and as denials.
fn shapes(count: usize) -> Vec<Policy> {
    let rules = |rule: &dyn Fn(usize) -> String| (0..count).map(rule).collect::<Vec<_>>().join(", ");
    let wide = |rules: String| {
        let own = "{ name = 'own', allow = 'group:g3', to = 'GET /v1/r3/x' }";
        policy(&format!(
            "issuers = ['corp']\n[roles]\nr3 = {{ any = 'group:g3' }}\n[services.s]\nhidden = true\nrules = [{rules}, {own}]"
        ))
    };
    vec![
        wide(rules(&|n| format!("{{ allow = 'group:g{n}', to = 'GET /**', with = {{ scope = 's' }} }}"))),
        wide(rules(&|n| format!("{{ allow = '*', to = 'GET /v1/r{n}/**', with = {{ scope = 's' }} }}"))),
        wide(rules(&|n| format!("{{ allow = 'group:g{n}', to = 'GET /v1/*/r{n}' }}"))),
        wide(rules(&|n| format!("{{ deny = 'group:h{n}', to = '* /**' }}"))),
        wide(rules(&|n| format!("{{ deny = '*', to = '* /V1/d{n}/**' }}"))),
    ]
}

fn steps(policy: &Policy, who: &str, call: &str) -> (bool, usize) {
    let before = STEPS.get();
    let allowed = decide(policy, who, call).is_ok();
    (allowed, STEPS.get() - before)
}

#[test]
fn ten_thousand_rules_cost_no_more_than_ten() {
    let (few, many) = (shapes(10), shapes(10_000));
    for (shape, (few, many)) in few.iter().zip(&many).enumerate() {
        for (who, call, allowed) in [
            ("groups = ['g3', 'other']", "GET s/v1/r3/x", true),
            ("groups = ['g3', 'other']", "GET s/v1/R3/x", false),
            ("groups = ['g3', 'h3']", "PUT s/v1/r3/x", false),
        ] {
            let (small, large) = (steps(few, who, call), steps(many, who, call));
            assert!(small.1 > 0 && small.0 == large.0, "{shape} {call}: {small:?} {large:?}");
            assert_eq!(small.0, allowed && !(shape == 3 && who.contains("h3")), "{shape} {call}");
            // A refusal looks at more rules, to tell which is the closest, but at so many and no more.
            let most = if large.0 { small.1 } else { small.1 + 200 };
            assert!(
                large.1 <= most,
                "{shape} {call}: {} steps with 10 rules, {} with 10,000",
                small.1,
                large.1
            );
        }
    }
}

/// Reads a file as relay.toml's policy is read; a mistake is told with its place.
fn read(text: &str) {
    let source = Source::from_text("relay.toml", text);
    match source.parse().map(policy_source).map(Policy::compile) {
        Ok(Ok(policy)) => drop(policy.run_tests()),
        // To find a place is to read the file again: that is the loader's cost, for as many as it shows.
        Ok(Err(problems)) => {
            assert!(
                problems.into_iter().next().is_some_and(|one| !source.locate(one).to_string().is_empty())
            );
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Files are read at a start and at a reload: their cost is bounded by their length.
#[test]
fn no_policy_file_takes_long_for_its_length() {
    let limit = |text: &str| cost::LIMIT * u32::try_from(1 + text.len() / 1024).unwrap();
    let many = |one: &dyn Fn(usize) -> String| (0..200).map(one).collect::<String>();
    for heavy in [
        "[".repeat(4096),
        "a.".repeat(2048),
        "issuers = [".repeat(400),
        format!("issuers = {}", "[".repeat(4096)),
        format!(
            "issuers = [\"corp\"]\n[roles]\n{}",
            many(&|n| format!("r{n} = {{ any = \"role:r{}\" }}\n", n + 1))
        ),
        format!(
            "issuers = [\"corp\"]\n[roles]\n{}",
            many(&|n| format!("r{n} = {{ any = \"role:r{}\" }}\n", (n + 1) % 200))
        ),
        format!(
            "issuers = [\"corp\"]\n[services.s]\nrules = [{}]",
            many(&|n| format!("{{ allow = \"grp:{n}\", to = \"GET /{n}\" }},"))
        ),
        format!(
            "issuers = [\"corp\"]\n[services.s]\nrules = [{}]",
            many(&|_| "{ name = \"same\", allow = \"*\", to = \"GET /**\" },".to_owned())
        ),
    ] {
        assert!(cost::is_within(limit(&heavy), || read(&heavy)), "{heavy}");
    }
    proptest!(|(bytes in proptest::collection::vec(any::<u8>(), 0..4096), at in any::<prop::sample::Index>(), junk in "\\PC{0,40}")| {
        let mut mutated = EXAMPLE.to_owned();
        mutated.insert_str(at.index(EXAMPLE.len() + 1), &junk);
        for text in [String::from_utf8_lossy(&bytes).into_owned(), mutated] {
            prop_assert!(cost::is_within(limit(&text), || read(&text)), "{}", text);
        }
    });
}
