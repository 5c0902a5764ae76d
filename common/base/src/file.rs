//! Takes bytes for a path; gives a file that is whole or not there at all, readable by its owner alone where it is private.

use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, fchown};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};

/// Who may read what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// 0600: keys, sessions, databases.
    Private,
    /// 0644: certificates, configuration.
    Public,
}

/// Writes a temporary file beside `path`, syncs it and renames it over `path`: a reader sees the old or the new, whole.
pub fn write_atomic(path: &Path, bytes: &[u8], access: Access) -> io::Result<()> {
    let (dir, name) = parts(path)?;
    replace(&open(dir, OFlags::DIRECTORY)?, name, bytes, access, |_| Ok(()))
}

/// As [`write_atomic`]; what root writes belongs to whom the directory belongs to. Refuses a directory that is a symbolic link: that user
/// could have it lead anywhere.
pub fn write_as_owner(path: &Path, bytes: &[u8], access: Access) -> io::Result<()> {
    let (dir, name) = parts(path)?;
    let dir = open(dir, OFlags::DIRECTORY | OFlags::NOFOLLOW)?;
    let owner = dir.metadata()?;
    replace(&dir, name, bytes, access, |file| give(file, owner.uid(), owner.gid()))
}

/// Gives a file that exists other bytes, whole or not at all; its mode and its owner stay. Refuses a symbolic link.
pub fn rewrite(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let before = open(path, OFlags::NOFOLLOW | OFlags::NONBLOCK)?.metadata()?;
    if !before.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no regular file"));
    }
    let (dir, name) = parts(path)?;
    // Written for its owner alone first: whoever could not read the old file does not get to read the new one.
    replace(&open(dir, OFlags::DIRECTORY)?, name, bytes, Access::Private, |file| {
        give(file, before.uid(), before.gid())?;
        file.set_permissions(Permissions::from_mode(before.mode() & 0o7777))
    })
}

/// What root made belongs to another from now on, be it a file or a directory. Refuses links of both kinds: they could be to anything.
pub fn hand_over(path: &Path, uid: u32, gid: u32) -> io::Result<()> {
    let file = open(path, OFlags::NOFOLLOW | OFlags::NONBLOCK)?;
    let meta = file.metadata()?;
    if meta.is_dir() || (meta.is_file() && meta.nlink() == 1) {
        return give(&file, uid, gid);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "it has another name elsewhere, or is no file"))
}

fn give(file: &File, uid: u32, gid: u32) -> io::Result<()> {
    if rustix::process::geteuid().is_root() { fchown(file, Some(uid), Some(gid)) } else { Ok(()) }
}

fn parts(path: &Path) -> io::Result<(&Path, &OsStr)> {
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no file name"))?;
    Ok((dir, name))
}

fn open(path: &Path, how: OFlags) -> io::Result<File> {
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | how, Mode::empty())?.into())
}

/// All within the directory as it was opened, whatever becomes of its name; `finish` sees the file before anybody else does.
fn replace(
    dir: &File,
    name: &OsStr,
    bytes: &[u8],
    access: Access,
    finish: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    let temporary = format!(".{}.{:016x}", name.to_string_lossy(), rand::random::<u64>());
    let mode = match access {
        Access::Private => 0o600,
        Access::Public => 0o644,
    };
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let written = (|| {
        let mut file = File::from(openat(dir, &temporary, flags, Mode::from_raw_mode(mode))?);
        file.write_all(bytes)?;
        finish(&file)?;
        file.sync_all()?;
        renameat(dir, &temporary, dir, name)?;
        dir.sync_all()
    })();
    if written.is_err() {
        // The temporary may be gone already; what matters is the first error.
        let _ = unlinkat(dir, &temporary, AtFlags::empty());
    }
    written
}

/// Creates a directory (and its parents) that only its owner may enter; an existing one is left as it is.
pub fn create_private_dir(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Refuses a private file that others may read or write, or that belongs to another user than this process and root.
pub fn check_private(path: &Path) -> io::Result<()> {
    let meta = std::fs::metadata(path)?;
    if meta.mode() & 0o077 != 0 {
        let text = format!("{}: others may read it; run: chmod 600 {}", path.display(), path.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_files_are_private_and_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        write_atomic(&path, b"one", Access::Private).unwrap();
        write_atomic(&path, b"two", Access::Private).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary is left");
        check_private(&path).unwrap();
        write_atomic(&path, b"three", Access::Public).unwrap();
        assert!(check_private(&path).is_err());
        rewrite(&path, b"four").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o644, "its mode stays");
        assert!(rewrite(&dir.path().join("none"), b"").is_err());
    }

    #[test]
    fn links_lead_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let [elsewhere, link, inside, file] =
            ["elsewhere", "link", "link/key.pem", "file"].map(|name| dir.path().join(name));
        std::fs::create_dir(&elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
        assert!(write_as_owner(&inside, b"one", Access::Private).is_err());
        assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 0);
        std::fs::write(&file, "kept").unwrap();
        let other = dir.path().join("other");
        std::os::unix::fs::symlink(&file, &other).unwrap();
        assert!(rewrite(&other, b"new").is_err() && hand_over(&other, 65534, 65534).is_err());
        std::fs::hard_link(&file, dir.path().join("second")).unwrap();
        assert!(hand_over(&file, 65534, 65534).is_err());
        assert!(rewrite(&elsewhere, b"new").is_err());
        let meta = std::fs::metadata(&file).unwrap();
        assert_eq!(meta.uid(), rustix::process::geteuid().as_raw());
        assert_eq!(std::fs::read(&file).unwrap(), b"kept");
    }

    #[test]
    fn what_root_writes_belongs_to_the_directorys_owner() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        hand_over(dir.path(), 65534, 65533).unwrap();
        let path = dir.path().join("key.pem");
        write_as_owner(&path, b"one", Access::Private).unwrap();
        let owned =
            || std::fs::metadata(&path).map(|meta| (meta.uid(), meta.gid(), meta.mode() & 0o777)).unwrap();
        assert_eq!(owned(), (65534, 65533, 0o600));
        rewrite(&path, b"two").unwrap();
        assert_eq!(owned(), (65534, 65533, 0o600), "it stays whose it was");
    }
}
