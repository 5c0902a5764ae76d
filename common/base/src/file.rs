//! Takes bytes for a path; gives a file that is whole or not there at all, readable by its owner alone where it is private.

use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

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
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no file name"))?;
    let temporary = dir.join(format!(".{}.{:016x}", name.to_string_lossy(), rand::random::<u64>()));
    let mode = match access {
        Access::Private => 0o600,
        Access::Public => 0o644,
    };
    let written = (|| {
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        std::fs::File::open(dir)?.sync_all()
    })();
    if written.is_err() {
        // The temporary may be gone already; what matters is the first error.
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

/// Gives a file that exists other bytes, whole or not at all; its mode and its owner stay.
pub fn rewrite(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let before = std::fs::metadata(path)?;
    // Written for its owner alone first: whoever could not read the old file does not get to read the new one.
    write_atomic(path, bytes, Access::Private)?;
    std::fs::set_permissions(path, before.permissions())?;
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(path, Some(before.uid()), Some(before.gid()))?;
    }
    Ok(())
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
}
