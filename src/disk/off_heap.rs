//! Lists that may become long and do not live long, kept out of the heap.
//!
//! A list that grows on the heap leaves holes there, and what glibc gets back of it, it keeps: after one large backup every
//! later one begins with the memory of that. A block of more than 32 MiB (`DEFAULT_MMAP_THRESHOLD_MAX` of malloc.c) has a
//! mapping of its own, grows without being copied, and goes back to the system at once. So these lists begin with that much
//! address space: of memory they take only the pages that are written to.

/// More than 32 MiB.
const BYTES: usize = 33 * 1024 * 1024;

/// An empty list.
pub(crate) fn list<T>() -> Vec<T> {
    Vec::with_capacity(BYTES / size_of::<T>().max(1) + 1)
}

/// An empty text.
pub(crate) fn text() -> String {
    String::with_capacity(BYTES)
}
