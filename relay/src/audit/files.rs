//! The files of an audit log, for those who read it: all of them in order, and the newest as it grows.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use postern_base::audit::rotated;

/// How far from the end [`Follow`] looks for its first lines.
const LOOK_BACK: u64 = 256 * 1024;

/// Every file of a log, oldest first.
pub fn all(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = rotated(path)?;
    files.push(path.to_owned());
    Ok(files)
}

/// Gives each line of a file to `each`, without its end. Half a line at the end of the file, which a relay may be writing, is left out;
/// says how long it is.
pub fn each_line(path: &Path, mut each: impl FnMut(&[u8])) -> io::Result<usize> {
    let mut file = BufReader::new(File::open(path)?);
    let mut line = Vec::new();
    while file.read_until(b'\n', &mut line)? > 0 {
        let Some(whole) = line.strip_suffix(b"\n") else { return Ok(line.len()) };
        each(whole);
        line.clear();
    }
    Ok(0)
}

/// A log as it grows, over its rotations.
#[derive(Debug)]
pub struct Follow {
    path: PathBuf,
    file: File,
    /// Half a line.
    rest: Vec<u8>,
}

impl Follow {
    /// Begins a little before the end of the file.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut rest = Vec::new();
        if length > LOOK_BACK {
            file.seek(SeekFrom::Start(length - LOOK_BACK))?;
            let mut end = BufReader::new(&file);
            end.skip_until(b'\n')?;
            end.read_to_end(&mut rest)?;
        }
        Ok(Self { path: path.to_owned(), file, rest })
    }

    /// The lines that came since the last time.
    pub fn more(&mut self) -> io::Result<Vec<Vec<u8>>> {
        // Looked at first: what is written before the rotation is in the file that we hold.
        let is_put_aside = match std::fs::metadata(&self.path) {
            Ok(now) => now.ino() != self.file.metadata()?.ino(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            Err(e) => return Err(e),
        };
        self.file.read_to_end(&mut self.rest)?;
        if is_put_aside {
            self.file = File::open(&self.path)?;
            self.file.read_to_end(&mut self.rest)?;
        }
        let whole = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let rest = self.rest.split_off(whole);
        let lines = std::mem::replace(&mut self.rest, rest);
        Ok(lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn following_goes_over_a_rotation_and_leaves_half_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let mut file = File::create(&path).unwrap();
        let mut follow = Follow::open(&path).unwrap();
        let mut next =
            || follow.more().unwrap().into_iter().map(|l| String::from_utf8(l).unwrap()).collect::<Vec<_>>();
        file.write_all(b"one\ntw").unwrap();
        assert_eq!(next(), ["one"]);
        assert_eq!(each_line(&path, |line| assert_eq!(line, b"one")).unwrap(), 2);
        file.write_all(b"o\n").unwrap();
        std::fs::rename(&path, dir.path().join("audit.jsonl.20260101T000000.000Z")).unwrap();
        std::fs::write(&path, "three\n").unwrap();
        assert_eq!(next(), ["two", "three"]);
        assert_eq!(next(), [""; 0]);
        assert_eq!(all(&path).unwrap().len(), 2);
    }
}
