//! Where an audit log's lines end up: a file that is rotated and holds room in reserve, or a stream such as stdout. Takes bytes; refuses
//! what the disk refuses, and links where another user could put them in root's way, and says when only the reserve is left.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use rustix::fs::{FallocateFlags, OFlags, fallocate};

use super::{Destination, LogSettings, Rotate};

/// The longest line that is looked for at the end of a file: many times what a request's head and token may have.
const LONGEST_LINE: u64 = 1024 * 1024;
/// The reserve is filled up in steps of this part of it, so that it costs a system call now and then.
const STEPS: u64 = 64;

/// Nothing more fits: what the reserve and `full` are for.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The end of a file as it was found.
#[derive(Debug, Default)]
pub(super) struct Tail {
    /// The last whole line, without its end.
    pub(super) line: Option<Vec<u8>>,
    /// Bytes behind it that are no whole line.
    pub(super) torn: u64,
}

#[derive(Debug)]
pub(super) struct Disk {
    file: File,
    /// `None` for streams, of which nothing is kept, reserved or rotated.
    path: Option<PathBuf>,
    length: u64,
    rotate: Rotate,
    reserve: u64,
    /// Up to where the file system has promised room.
    reserved: u64,
    /// The file system has no room beside the reserve.
    is_short: bool,
}

impl Disk {
    /// Opens the file for appending (0600 where it is new) and reserves what is to be held.
    pub(super) fn open(settings: &LogSettings) -> io::Result<Self> {
        let (file, path) = match &settings.to {
            Destination::Stdout => (File::from(rustix::io::dup(io::stdout())?), None),
            Destination::File(path) => {
                let file = append(path, is_anothers(path)?)?;
                let is_file = file.metadata()?.is_file();
                (file, is_file.then(|| path.clone()))
            }
        };
        let length = if path.is_some() { file.metadata()?.len() } else { 0 };
        let (rotate, reserve) = (settings.rotate, settings.reserve);
        let mut disk = Self { file, path, length, rotate, reserve, reserved: 0, is_short: false };
        match disk.hold_reserve() {
            Err(e) if !is_full(&e) => {
                let text =
                    format!("this file system cannot hold a reserve ({e}): set audit.reserve = \"off\"");
                Err(io::Error::new(e.kind(), text))
            }
            _ => Ok(disk),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    pub(super) fn is_kept(&self) -> bool {
        self.path.is_some()
    }

    pub(super) fn is_short(&self) -> bool {
        self.is_short
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.length += written as u64;
        Ok(written)
    }

    /// Takes back what was written last.
    pub(super) fn take_back(&mut self, bytes: u64) -> io::Result<()> {
        if self.path.is_some() && bytes > 0 {
            self.file.set_len(self.length - bytes)?;
            self.length -= bytes;
            self.reserved = 0;
        }
        Ok(())
    }

    /// Fills the reserve up where enough of it was used, and notices whether the file system still has room.
    pub(super) fn top_up(&mut self) {
        let is_low = self.length + self.reserve >= self.reserved + self.reserve / STEPS;
        if (is_low || self.is_short)
            && let Err(e) = self.hold_reserve()
            && !is_full(&e)
        {
            tracing::warn!(error = %e, "the audit log's reserve could not be filled up");
        }
    }

    /// Room behind the file's end, which nobody else can take.
    fn hold_reserve(&mut self) -> io::Result<()> {
        if self.path.is_none() || self.reserve == 0 {
            return Ok(());
        }
        // Somebody may have emptied the file.
        self.length = self.file.metadata()?.len();
        let held = fallocate(&self.file, FallocateFlags::KEEP_SIZE, self.length, self.reserve);
        let held = held.map_err(io::Error::from);
        self.is_short = held.as_ref().is_err_and(is_full);
        if held.is_ok() {
            self.reserved = self.length + self.reserve;
        }
        held
    }

    pub(super) fn wants_rotation(&self) -> bool {
        self.path.is_some() && !self.is_short && self.rotate.size.is_some_and(|size| self.length >= size)
    }

    /// Puts the file aside under a name of its own, which it gives, and begins a new one.
    pub(super) fn rotate(&mut self, now: Timestamp) -> io::Result<String> {
        let Some(path) = self.path.clone() else { return Ok(String::new()) };
        let next = sibling(&path, "next");
        let is_anothers = is_anothers(&path)?;
        if is_anothers
            && let Err(e) = std::fs::remove_file(&next)
            && e.kind() != io::ErrorKind::NotFound
        {
            return Err(e);
        }
        let file = append(&next, is_anothers)?;
        file.set_len(0)?;
        let mut at = now;
        let aside = loop {
            let aside = sibling(&path, &at.strftime("%Y%m%dT%H%M%S.%3fZ").to_string());
            if !aside.exists() {
                break aside;
            }
            at += Duration::from_millis(1);
        };
        std::fs::rename(&path, &aside)?;
        if let Err(e) = std::fs::rename(&next, &path) {
            // Lines go on to where the next start looks for them.
            std::fs::rename(&aside, &path)?;
            return Err(e);
        }
        // Gives back what was reserved behind its end.
        self.file.set_len(self.length)?;
        self.file = file;
        self.length = 0;
        // The next write finds out if there is none.
        let _ = self.hold_reserve();
        Ok(aside.file_name().unwrap_or_default().to_string_lossy().into_owned())
    }

    /// Removes files put aside whose last line is too old; gives their names.
    pub(super) fn sweep(&self, now: SystemTime) -> Vec<String> {
        let (Some(path), Some(keep_for)) = (&self.path, self.rotate.keep_for) else { return Vec::new() };
        let Ok(files) = rotated(path) else { return Vec::new() };
        let is_old = |file: &PathBuf| {
            let changed = file.metadata().and_then(|meta| meta.modified());
            changed.is_ok_and(|at| now.duration_since(at).is_ok_and(|age| age > keep_for))
        };
        let removed = files.into_iter().filter(|file| is_old(file) && std::fs::remove_file(file).is_ok());
        removed.map(|file| file.file_name().unwrap_or_default().to_string_lossy().into_owned()).collect()
    }

    /// The end of what is there: of this file, or of the newest that was put aside where this one is empty.
    pub(super) fn tail(&mut self) -> io::Result<Tail> {
        let Some(path) = &self.path else { return Ok(Tail::default()) };
        if self.length > 0 {
            return read_tail(&mut self.file, self.length);
        }
        let Some(newest) = rotated(path)?.pop() else { return Ok(Tail::default()) };
        let mut file = open(OpenOptions::new().read(true), &newest, is_anothers(path)?)?;
        let length = file.metadata()?.len();
        read_tail(&mut file, length)
    }

    /// All of the file from its start.
    pub(super) fn read(&self) -> io::Result<Option<File>> {
        let Some(path) = &self.path else { return Ok(None) };
        open(OpenOptions::new().read(true), path, is_anothers(path)?).map(Some)
    }
}

/// Opens a log for appending. A new one is for its owner alone; where root makes it, in a command beside the program, that is whoever the
/// directory belongs to: the program, which is another user's, is to go on with it.
fn append(path: &Path, is_anothers: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).read(true).mode(0o600);
    match options.clone().create_new(true).open(path) {
        Ok(file) => {
            if rustix::process::geteuid().is_root() {
                let owner = std::fs::metadata(dir(path))?;
                // A root that may not do this has a log all the same.
                let _ = fchown(&file, Some(owner.uid()), Some(owner.gid()));
            }
            Ok(file)
        }
        // Gone again meanwhile it is made again, but where it is another's: he may be at work there.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            open(options.create(!is_anothers), path, is_anothers)
        }
        Err(e) => Err(e),
    }
}

/// Whether this is root in a directory of somebody else, who could put links there to what only root may touch.
fn is_anothers(path: &Path) -> io::Result<bool> {
    Ok(rustix::process::geteuid().is_root() && std::fs::metadata(dir(path))?.uid() != 0)
}

/// Opens what is there; where the directory is another's, only if it is nothing but a file of this one name.
fn open(options: &OpenOptions, path: &Path, is_anothers: bool) -> io::Result<File> {
    if !is_anothers {
        return options.open(path);
    }
    let no_links = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = options.clone().custom_flags(no_links).open(path)?;
    let meta = file.metadata()?;
    if meta.is_file() && meta.nlink() == 1 {
        return Ok(file);
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        "it has another name elsewhere, or is no file, in a directory that is not root's: remove it, or name another one",
    ))
}

fn dir(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn sibling(path: &Path, end: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(end);
    path.with_file_name(name)
}

/// The files that were put aside, oldest first.
pub fn rotated(path: &Path) -> io::Result<Vec<PathBuf>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir(path))? {
        let entry = entry?;
        let other = entry.file_name();
        let end = other.to_str().and_then(|other| other.strip_prefix(&*name)?.strip_prefix('.'));
        if end.is_some_and(|end| end.len() == 20 && end.starts_with('2') && end.ends_with('Z')) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

fn read_tail(file: &mut File, length: u64) -> io::Result<Tail> {
    let start = length.saturating_sub(LONGEST_LINE);
    file.seek(SeekFrom::Start(start))?;
    let mut end = Vec::new();
    file.take(length - start).read_to_end(&mut end)?;
    let whole = end.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    if whole == 0 && start > 0 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is not an audit log: its last line has no end",
        ));
    }
    let torn = (end.len() - whole) as u64;
    let line = end[..whole].split(|byte| *byte == b'\n').rev().nth(1).map(<[u8]>::to_vec);
    Ok(Tail { line, torn })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn root_follows_no_link_in_a_directory_of_another() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("shadow"), "secret").unwrap();
        symlink(at("shadow"), at("symbolic")).unwrap();
        std::fs::hard_link(at("shadow"), at("hard")).unwrap();
        symlink(at("absent"), at("dangling")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, at("fifo"), rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)
            .unwrap();
        for name in ["symbolic", "hard", "dangling", "fifo"] {
            assert!(append(&at(name), true).is_err(), "{name}");
            assert!(name == "dangling" || append(&at(name), false).is_ok(), "{name} is anybody's own choice");
            assert!(open(OpenOptions::new().read(true), &at(name), true).is_err(), "{name}");
        }
        assert!(!at("absent").exists());
        for _ in 0..2 {
            append(&at("audit.jsonl"), true).unwrap().write_all(b"1").unwrap();
        }
        assert_eq!(std::fs::read(at("audit.jsonl")).unwrap(), b"11");
    }

    #[test]
    fn a_link_in_the_way_of_the_next_file_is_not_written_through() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        // Only root can give a directory away.
        if rustix::fs::chown(dir.path(), Some(rustix::fs::Uid::from_raw(65_534)), None).is_err() {
            return;
        }
        let rotate = Rotate { size: Some(1), keep_for: None };
        let settings = LogSettings {
            to: Destination::File(path.clone()),
            rotate,
            reserve: 0,
            full: super::super::WhenFull::Block,
        };
        let mut disk = Disk::open(&settings).unwrap();
        let other = dir.path().join("shadow");
        std::fs::write(&other, "secret").unwrap();
        symlink(&other, sibling(&path, "next")).unwrap();
        disk.write(b"line\n").unwrap();
        disk.rotate(Timestamp::UNIX_EPOCH).unwrap();
        disk.write(b"next\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"next\n");
        assert_eq!(std::fs::read(&other).unwrap(), b"secret");
        std::fs::remove_file(&path).unwrap();
        symlink(&other, &path).unwrap();
        assert!(Disk::open(&settings).is_err());
    }
}
