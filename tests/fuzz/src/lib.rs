//! What the fuzz targets share: a gate whose one issuer has its key in a file, and keys that sign whatever a target makes up, so that the
//! fuzzer gets behind the signature. All is fixed, keys and time too: an input means the same in every run.

pub mod gate;
pub mod pair;
