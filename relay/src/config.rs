//! Reads relay.toml with its includes: takes a path, gives settings and a compiled, tested policy; refuses with every mistake in its
//! place. What is typed is in [`mod@file`]; what it means is in [`crate::settings`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use postern_base::config::{ConfigError, Problem, Source};
use postern_base::id::ServiceName;
use postern_gate::policy::{Policy, PolicySource, ServiceRules, TestFile};

use crate::settings::Settings;

pub mod diff;
pub mod file;
mod methods;
pub mod outline;

use outline::Outline;

use file::{IncludeFile, RelayFile, ServiceFile};

/// A commented configuration that `config check` accepts.
pub const EXAMPLE: &str = include_str!("../example.toml");

/// A configuration that passed every check, its own tests included.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub settings: Arc<Settings>,
    pub policy: Arc<Policy>,
    /// What was written, for whoever asks what changed.
    pub outline: Arc<Outline>,
    /// Which file each service is in.
    pub origins: BTreeMap<ServiceName, PathBuf>,
    pub warnings: Vec<String>,
}

/// A file as it shall become: its text, or nothing where it shall go.
#[derive(Debug, Clone, Copy)]
pub struct Edit<'a> {
    pub path: &'a Path,
    pub text: Option<&'a str>,
}

/// Reads, parses, compiles and tests a configuration; changes nothing.
///
/// # Errors
/// Every mistake found, each with its place; at least one.
pub fn load(path: &Path) -> Result<Loaded, Vec<ConfigError>> {
    passed(look(path)?)
}

/// The same for whoever only looks at it: tests that fail refuse nothing, but are given beside it, each with its place.
///
/// # Errors
/// Every other mistake found; at least one.
pub fn look(path: &Path) -> Result<(Loaded, Vec<ConfigError>), Vec<ConfigError>> {
    check(&read(path, None).map_err(|e| vec![e])?)
}

/// The same as if a file had been changed already.
///
/// # Errors
/// As [`load`].
pub fn load_edited(path: &Path, edit: Edit<'_>) -> Result<Loaded, Vec<ConfigError>> {
    passed(check(&read(path, Some(edit)).map_err(|e| vec![e])?)?)
}

fn passed((loaded, failing): (Loaded, Vec<ConfigError>)) -> Result<Loaded, Vec<ConfigError>> {
    if failing.is_empty() { Ok(loaded) } else { Err(failing) }
}

/// The file that `include` sets aside for a service of this name, if it has a pattern that fits.
///
/// # Errors
/// The main file cannot be read.
pub fn file_of(path: &Path, service: &ServiceName) -> Result<Option<PathBuf>, ConfigError> {
    let main = Source::read(path)?;
    let file: RelayFile = main.parse()?;
    let place = |pattern: &String| {
        let pattern = main.dir().join(pattern);
        let suffix = pattern.file_name()?.to_str()?.strip_prefix('*')?;
        Some(pattern.with_file_name(format!("{service}{suffix}")))
    };
    Ok(file.include.iter().find_map(place))
}

/// The configuration's files: the main one, then those that it includes.
///
/// # Errors
/// The main file cannot be read, or an include names what cannot be.
pub fn files(path: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let main = Source::read(path)?;
    let file: RelayFile = main.parse()?;
    let mut all = vec![path.to_owned()];
    for (index, pattern) in file.include.iter().enumerate() {
        let at = |message: String| main.locate(Problem::new(&format!("include.{index}"), message));
        all.extend(expand(&main.dir(), pattern, None).map_err(at)?);
    }
    Ok(all)
}

impl Edit<'_> {
    fn read(edit: Option<Self>, path: &Path) -> Result<Source, ConfigError> {
        match edit.and_then(|edit| edit.text.filter(|_| edit.path == path)) {
            Some(text) => Ok(Source::from_text(path.display().to_string(), text)),
            None => Source::read(path),
        }
    }
}

/// The main file, its includes, and which file each service and test came from.
#[derive(Debug)]
struct Files {
    main: Source,
    file: RelayFile,
    services: BTreeMap<ServiceName, (Arc<Source>, ServiceFile)>,
    /// Source and index there, in the order in which the policy sees them.
    tests: Vec<(Arc<Source>, usize, TestFile)>,
}

fn read(path: &Path, edit: Option<Edit<'_>>) -> Result<Files, ConfigError> {
    let main = Edit::read(edit, path)?;
    let mut file: RelayFile = main.parse()?;
    if file.version != 1 {
        return Err(main.locate(Problem::new("version", "this relay reads version = 1")));
    }
    let shared = Arc::new(main.clone());
    let mut services: BTreeMap<_, _> = std::mem::take(&mut file.services)
        .into_iter()
        .map(|(name, service)| (name, (shared.clone(), service)))
        .collect();
    let mut tests: Vec<_> = std::mem::take(&mut file.tests)
        .into_iter()
        .enumerate()
        .map(|(n, test)| (shared.clone(), n, test))
        .collect();
    for (index, pattern) in file.include.iter().enumerate() {
        let at = |message: String| main.locate(Problem::new(&format!("include.{index}"), message));
        for path in expand(&main.dir(), pattern, edit).map_err(at)? {
            let source = Arc::new(Edit::read(edit, &path)?);
            let included: IncludeFile = source.parse()?;
            for (name, service) in included.services {
                if let Some((first, _)) = services.get(&name) {
                    let message = format!("service {name} is already in {}", first.file());
                    return Err(
                        source.locate(Problem { at: vec!["services".into(), name.to_string()], message })
                    );
                }
                services.insert(name, (source.clone(), service));
            }
            tests.extend(included.tests.into_iter().enumerate().map(|(n, test)| (source.clone(), n, test)));
        }
    }
    Ok(Files { main, file, services, tests })
}

/// The files that an include names; a pattern may match none, a plain name must exist.
fn expand(dir: &Path, pattern: &str, edit: Option<Edit<'_>>) -> Result<Vec<PathBuf>, String> {
    let path = dir.join(pattern);
    let Some(suffix) =
        path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix('*'))
    else {
        return if pattern.contains('*') {
            Err("only the last part may be a pattern, such as \"services.d/*.toml\"".to_owned())
        } else {
            Ok(vec![path])
        };
    };
    let parent = path.parent().unwrap_or(dir);
    let entries: Vec<PathBuf> = match std::fs::read_dir(parent) {
        Ok(entries) => entries.filter_map(Result::ok).map(|entry| entry.path()).collect(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(format!("{}: {e}", parent.display())),
    };
    let edited = edit.filter(|edit| edit.path.parent() == Some(parent));
    let (gone, new) = match edited {
        Some(Edit { path, text: None }) => (Some(path), None),
        Some(Edit { path, text: Some(_) }) if !entries.iter().any(|entry| entry == path) => {
            (None, Some(path))
        }
        _ => (None, None),
    };
    let mut found: Vec<PathBuf> = entries
        .into_iter()
        .filter(|entry| gone.is_none_or(|gone| entry != gone))
        .chain(new.map(Path::to_path_buf))
        .filter(|p| {
            p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.ends_with(suffix) && !n.starts_with('.'))
        })
        .collect();
    found.sort();
    Ok(found)
}

fn check(files: &Files) -> Result<(Loaded, Vec<ConfigError>), Vec<ConfigError>> {
    let locate = |problem: Problem| files.locate(problem);
    let services = files.services.iter().map(|(name, (source, service))| (name, service, source.file()));
    let settings = Settings::new(&files.file, services, &files.main.dir())
        .map_err(|problems| problems.into_iter().map(locate).collect::<Vec<_>>())?;
    let rules_of = |service: &ServiceFile| ServiceRules {
        kind: service.kind,
        issuers: service.issuers.clone(),
        hidden: service.hidden,
        rules: service.rules.clone(),
    };
    let source = PolicySource {
        issuers: settings.issuers.iter().map(|issuer| issuer.name.clone()).collect(),
        roles: files.file.roles.clone(),
        services: files.services.iter().map(|(name, (_, s))| (name.clone(), rules_of(s))).collect(),
        rules: files.file.rules.clone(),
        tests: files.tests.iter().map(|(_, _, test)| test.clone()).collect(),
    };
    let policy =
        Policy::compile(source).map_err(|problems| problems.into_iter().map(locate).collect::<Vec<_>>())?;
    let failing = policy
        .run_tests()
        .into_iter()
        .enumerate()
        .filter(|(_, outcome)| !outcome.passed)
        .map(|(index, outcome)| {
            locate(Problem::new(
                &format!("tests.{index}"),
                format!("test {:?} fails: {}", outcome.name, outcome.detail),
            ))
        })
        .collect();
    let mut warnings =
        settings.warnings(|name| files.services.get(name).is_some_and(|(_, s)| s.rules.is_empty()));
    let of_services =
        files.services.iter().map(|(name, (_, service))| (format!("services.{name}.rules"), &service.rules));
    for (at, rules) in of_services.chain([("rules".to_owned(), &files.file.rules)]) {
        for (index, rule) in rules.iter().enumerate() {
            warnings.extend(rule.to.0.iter().flat_map(|to| methods::doubts(&format!("{at}.{index}.to"), to)));
        }
    }
    let origin = |(name, (source, _)): (&ServiceName, &(Arc<Source>, ServiceFile))| {
        (name.clone(), PathBuf::from(source.file()))
    };
    let loaded = Loaded {
        outline: Arc::new(Outline::of(
            &settings,
            &files.file,
            files.services.iter().map(|(n, (_, s))| (n, s)),
        )),
        origins: files.services.iter().map(origin).collect(),
        settings: Arc::new(settings),
        policy: Arc::new(policy),
        warnings,
    };
    Ok((loaded, failing))
}

impl Files {
    /// Shows a problem in the file that the service or test it speaks of came from.
    fn locate(&self, mut problem: Problem) -> ConfigError {
        match (problem.at.first().map(String::as_str), problem.at.get(1)) {
            (Some("services"), Some(name)) => {
                self.services.get(name.as_str()).map_or(&self.main, |(source, _)| source).locate(problem)
            }
            (Some("tests"), Some(index)) => {
                let origin = index.parse::<usize>().ok().and_then(|index| self.tests.get(index));
                let Some((source, index, _)) = origin else { return self.main.locate(problem) };
                problem.at[1] = index.to_string();
                source.locate(problem)
            }
            _ => self.main.locate(problem),
        }
    }
}
