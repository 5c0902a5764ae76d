//! The authority as the rest of the relay sees it: which roots are believed, what it is made of, who has not moved to it, and its rotation.

use std::time::SystemTime;

use postern_base::file::{self, Access};
use rustls::pki_types::CertificateDer;

use super::ca::{self, BehindRow, CaReport, Prepared, Signed};
use super::{EnrollError, EnrollSettings, Enrollment, seconds};

impl EnrollSettings {
    /// Ends a change of the authority's files that a crash interrupted. For whoever looks at them before it opens anything.
    pub fn settle_ca(&self) -> Result<(), EnrollError> {
        Ok(ca::settle(&self.ca_dir())?)
    }

    /// Puts another's files in place of this authority's, all of them or none; an overlap of roots that is not among them ends. No relay may
    /// run. Blocks on the disk.
    pub fn replace_ca(&self, files: &[(&str, &[u8], Access)]) -> Result<(), EnrollError> {
        let dir = self.ca_dir();
        file::create_private_dir(&dir).map_err(|source| EnrollError::Io { path: dir.clone(), source })?;
        let mut change: Vec<ca::Change<'_>> = files.to_vec();
        if !files.iter().any(|(name, ..)| *name == ca::OVERLAP) {
            change.push((ca::OVERLAP, &[], Access::Public));
        }
        Ok(ca::commit(&dir, &change)?)
    }
}

impl Enrollment {
    /// The roots in force, to see whether they changed.
    pub fn trusted(&self) -> Vec<CertificateDer<'static>> {
        self.ca.trusted()
    }

    /// Whether agents get their certificates here, and so join, renew and recover here.
    pub fn issues(&self) -> bool {
        self.ca.issues()
    }

    /// That agents would believe what the authority signs or shows now.
    ///
    /// # Errors
    /// It has ended, or its parts do not belong together.
    pub fn check_ca(&self, now: SystemTime) -> Result<(), EnrollError> {
        Ok(self.ca.check(now)?)
    }

    /// What an operator should do about the authority.
    pub fn ca_warnings(&self, now: SystemTime) -> Vec<String> {
        self.ca.report(now).warnings
    }

    /// What the authority is made of, who is behind, and what an operator should do about it.
    pub fn ca_report(&self, now: SystemTime) -> CaReport {
        let mut report = self.ca.report(now);
        if !self.issues() {
            return report;
        }
        let state = self.state.load();
        // Whoever was away for longer needs an invite whatever happens here.
        let returns = |end: u64| end.saturating_add(self.settings.recover.as_secs()) >= seconds(now);
        let instances = state.instances.iter().filter(|(_, record)| record.removed.is_none());
        for (instance, record) in instances.filter(|(_, record)| returns(record.latest.not_after)) {
            report.instances += 1;
            if record.latest.epoch < report.epoch {
                report.behind.push(BehindRow {
                    agent: record.name.clone(),
                    instance: instance.clone(),
                    epoch: record.latest.epoch,
                    not_after: record.latest.not_after,
                });
            }
        }
        report.behind.sort_by(|a, b| (&a.agent, &a.instance).cmp(&(&b.agent, &b.instance)));
        report
    }

    /// The key of the next issuing CA, and what the root is to sign for it; `new_root` where the root itself is to be replaced.
    pub fn prepare_rotation(&self, new_root: bool) -> Result<Prepared, EnrollError> {
        Ok(self.ca.prepare(new_root)?)
    }

    /// Puts what the root signed into force. Blocks on the disk.
    pub fn rotate(&self, signed: &Signed, now: SystemTime) -> Result<(), EnrollError> {
        Ok(self.ca.install(signed, now)?)
    }

    /// Ends the trust in the root before this one; whoever has not moved needs a new invite then. Blocks on the disk.
    ///
    /// # Errors
    /// No root is being replaced, or, unless forced, instances are behind.
    pub fn finish_rotation(&self, force: bool, now: SystemTime) -> Result<(), EnrollError> {
        let behind = self.ca_report(now).behind.len();
        if behind > 0 && !force {
            return Err(EnrollError::Behind(behind));
        }
        Ok(self.ca.finish()?)
    }

    /// Reads somebody else's authority again; says whether it changed. Blocks on the disk.
    pub fn refresh_ca(&self, now: SystemTime) -> Result<bool, EnrollError> {
        Ok(self.ca.refresh(&self.settings.trust_domain, now)?)
    }
}
