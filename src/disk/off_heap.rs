//! Lists that may become long and are soon dropped, kept out of the heap.
//!
//! A list that grows on the heap leaves holes in it, and glibc does not return the freed memory to the system: after one large
//! backup the process would keep that memory. A block of more than 32 MiB (`DEFAULT_MMAP_THRESHOLD_MAX` of malloc.c) has its
//! own mapping, grows without being copied, and is returned to the system at once. So these lists begin with that much address
//! space; they use memory only for the pages that are written to.

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
