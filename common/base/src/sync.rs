//! Taking a lock where a panic of whoever held it before is nothing to end for.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// For values that are whole at every point where a panic could leave them; never held across an await.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
