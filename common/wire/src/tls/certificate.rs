//! What certificates say: names, dates, keys, and the epoch of the authority that issued them. Takes DER, gives words of ours; refuses what
//! does not parse. Nothing here is proved: whoever asks has verified the chain.

use std::fmt::Write as _;

use aws_lc_rs::digest;
use postern_base::id::{IdError, SpiffeId};
use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::OID_X509_SERIALNUMBER;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::X509Name;

use super::TlsError;

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, TlsError> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|e| TlsError::Certificate(e.to_string()))?;
    Ok(parsed)
}

/// The SPIFFE id of a leaf: it must have exactly one URI name and nothing else that could pass for an identity.
pub fn spiffe_id(leaf: &CertificateDer<'_>) -> Result<SpiffeId, TlsError> {
    let leaf = parse(leaf)?;
    let names = leaf.subject_alternative_name().map_err(|e| TlsError::Certificate(e.to_string()))?;
    let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
    match names {
        [GeneralName::URI(uri)] => uri.parse().map_err(|e: IdError| TlsError::Certificate(e.to_string())),
        _ => Err(TlsError::Certificate("needs exactly one name, a SPIFFE URI".to_owned())),
    }
}

/// When a certificate stops being valid, in seconds since the epoch.
pub fn not_after(certificate: &CertificateDer<'_>) -> Result<i64, TlsError> {
    Ok(parse(certificate)?.validity().not_after.timestamp())
}

/// When a certificate starts being valid, in seconds since the epoch.
pub fn not_before(certificate: &CertificateDer<'_>) -> Result<i64, TlsError> {
    Ok(parse(certificate)?.validity().not_before.timestamp())
}

/// A certificate's serial number, in lower-case hexadecimal.
pub fn serial(certificate: &CertificateDer<'_>) -> Result<String, TlsError> {
    let parsed = parse(certificate)?;
    let bytes = parsed.raw_serial();
    // DER puts a zero before a number whose first bit is set.
    Ok(hex(bytes.strip_prefix(&[0]).unwrap_or(bytes)))
}

/// A certificate's SubjectPublicKeyInfo, DER.
pub fn public_key(certificate: &CertificateDer<'_>) -> Result<Vec<u8>, TlsError> {
    Ok(parse(certificate)?.public_key().raw.to_vec())
}

/// What a key is known by: SHA-256 of its SubjectPublicKeyInfo.
pub fn fingerprint(spki: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, spki).as_ref());
    hash
}

/// The fingerprint of a certificate's key: what an invite pins.
pub fn pin(certificate: &CertificateDer<'_>) -> Result<[u8; 32], TlsError> {
    Ok(fingerprint(&public_key(certificate)?))
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The root with this pin in a chain that the peer presented.
pub fn pinned_root<'a>(
    pin: &[u8; 32],
    chain: &'a [CertificateDer<'static>],
) -> Option<&'a CertificateDer<'static>> {
    chain.iter().find(|certificate| self::pin(certificate).is_ok_and(|found| found == *pin))
}

/// The epoch of the authority that issued the first certificate of a verified chain; 0 where it bears none.
///
/// It is read from the leaf's issuer name: verification lets a leaf pass only under a certificate with that very name as its subject, and that
/// one the root has signed. What else a peer puts into its chain changes nothing.
pub fn epoch(chain: &[CertificateDer<'_>]) -> u64 {
    chain.first().and_then(|leaf| parse(leaf).ok()).map_or(0, |leaf| epoch_in(leaf.issuer()))
}

/// The epoch that an authority's own certificate bears; 0 where it bears none.
pub fn own_epoch(authority: &CertificateDer<'_>) -> u64 {
    parse(authority).map_or(0, |authority| epoch_in(authority.subject()))
}

/// The one serialNumber (X.520, 2.5.4.5) of a name, where it is a decimal number.
fn epoch_in(name: &X509Name<'_>) -> u64 {
    let mut numbers = name.iter_by_oid(&OID_X509_SERIALNUMBER);
    let number = numbers.next().filter(|_| numbers.next().is_none());
    number.and_then(|number| number.as_str().ok()?.parse().ok()).unwrap_or(0)
}

/// The root that follows `root`: self-signed, of a higher epoch, and its key is vouched for by a certificate of the same name in `chain` that
/// `root` signed (the cross certificate). An issuing CA is no such certificate, since nothing may issue below it.
pub fn successor(
    root: &CertificateDer<'_>,
    chain: &[CertificateDer<'static>],
) -> Option<CertificateDer<'static>> {
    let root = parse(root).ok()?;
    let parsed: Vec<_> = chain.iter().filter_map(|one| Some((one, parse(one).ok()?))).collect();
    let crosses = |next: &X509Certificate<'_>| {
        parsed.iter().any(|(_, cross)| {
            cross.subject() == next.subject()
                && cross.public_key().raw == next.public_key().raw
                && cross.issuer() == root.subject()
                && may_bear_authorities(cross)
                && cross.verify_signature(Some(root.public_key())).is_ok()
        })
    };
    let next = parsed.iter().find(|(_, next)| {
        next.subject() == next.issuer()
            && next.public_key().raw != root.public_key().raw
            && epoch_in(next.subject()) > epoch_in(root.subject())
            && may_bear_authorities(next)
            && next.verify_signature(None).is_ok()
            && crosses(next)
    });
    next.map(|(der, _)| (*der).clone())
}

/// A CA below which other CAs may stand, and said so.
fn may_bear_authorities(certificate: &X509Certificate<'_>) -> bool {
    let deep = certificate.basic_constraints().ok().flatten();
    let deep = deep
        .is_some_and(|found| found.value.ca && found.value.path_len_constraint.is_some_and(|len| len > 0));
    deep && certificate.key_usage().ok().flatten().is_some_and(|usage| usage.value.key_cert_sign())
}
