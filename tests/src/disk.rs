//! Takes a directory; gives a file system of its own there (a tmpfs), which is small, can be filled, emptied and made read-only, and goes
//! when dropped. Refuses where nothing may be mounted.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::process::{self, command};
use crate::wait;

pub struct Disk(PathBuf);

impl Disk {
    /// `options` as mount takes them, such as `size=2m`.
    pub async fn mount(at: &Path, options: &str) -> Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "a disk of its own needs root: run this test, or tests/run, as root"
        );
        std::fs::create_dir_all(at)?;
        let text = at.to_str().context("the directory's name is not text")?;
        let mount = command("mount", ["-t", "tmpfs", "-o", options, "tmpfs", text]);
        process::run(mount, wait::SOON).await?.expect_code(0)?;
        Ok(Self(at.to_owned()))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Takes all that is left.
    pub fn fill(&self) -> Result<()> {
        let mut file = std::fs::File::create(self.path("filler"))?;
        for size in [64 * 1024, 1024] {
            while file.write_all(&vec![b'x'; size]).is_ok() {}
        }
        Ok(())
    }

    pub fn clear(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.path("filler"))?)
    }

    /// `ro` or `rw`.
    pub async fn remount(&self, how: &str) -> Result<()> {
        let mut mount = command("mount", ["-o", &format!("remount,{how}")]);
        mount.arg(&self.0);
        process::run(mount, wait::SOON).await?.expect_code(0).map(drop)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: whoever still has a file open keeps nothing mounted.
        let _ = std::process::Command::new("umount").args(["-l"]).arg(&self.0).status();
    }
}
