//! Answers about all backups at once: a page of the list, and the totals in the metrics.
//!
//! The catalog is read for each answer, one backup after the other: so a backup that was removed by hand is not listed any more,
//! and a catalog of any length uses the memory of one page.

use std::sync::Arc;

use crate::backups::details::Details;
use crate::disk::off_heap;
use crate::error::{Error, Kind, Result};
use crate::id::BackupId;
use crate::service::Service;
use crate::service::answers::{Answer, Held, Page};
use crate::service::metrics;
use crate::service::shared::Shared;
use crate::service::summary::Summary;

/// The number of backups in a page by default, and the largest one.
pub(crate) const PAGE_COUNT: usize = 100;
pub(crate) const MAX_PAGE_COUNT: usize = 1000;

/// The largest page: it ends before the first backup that would make it larger.
const PAGE_BYTES: usize = 4 * 1024 * 1024;

impl Service {
    /// A page of the list as JSON; `None` if all held answers together already use too much memory.
    pub(crate) fn page(&self, page: Page) -> Result<Option<Held>> {
        let shared = self.shared();
        shared.listings.pages.answer(page, |page| Ok(shared.listings.answers.hold(render(shared, page)?)))
    }

    /// The metrics as text; `None` as for [`Service::page`].
    pub(crate) fn metrics(&self) -> Option<Held> {
        let shared = self.shared();
        let render = |(): &()| -> Result<Option<Held>> {
            let mut summary = Summary::default();
            // A backup that cannot be read is left out, and the metrics say so: the other figures are needed then, too.
            let mut each = shared.each().map_err(|_| summary.is_incomplete = true).ok();
            for found in each.iter_mut().flatten() {
                match found.and_then(|found| shared.details(&found.id.clone(), Ok(Some(found)))) {
                    Ok(details) => details.iter().for_each(|details| summary.add(details)),
                    Err(_) => summary.add_unreadable(),
                }
            }
            let text = metrics::render(&shared.counters, &summary, &shared.gauges());
            Ok(shared.listings.answers.hold(Answer { bytes: text.into_bytes(), more_before: None }))
        };
        shared.listings.metrics.answer((), render).ok().flatten()
    }

    /// The description of a backup as JSON; `None` as for [`Service::page`].
    pub(crate) fn hold_json(&self, details: &Details) -> Option<Held> {
        let bytes = serde_json::to_vec(details).expect("details have only string keys");
        self.shared().listings.answers.hold(Answer { bytes, more_before: None })
    }
}

fn render(shared: &Arc<Shared>, page: &Page) -> Result<Answer> {
    let ids = shared.ids_newest_first()?;
    if let Some(gone) = page.before.as_ref().filter(|id| id.number().is_none() && !ids.contains(id)) {
        let context = format!("backup {gone} does not exist, and its place in the list is unknown: leave out before");
        return Err(Error::new(Kind::NotFound, context));
    }
    let asked = page.before.as_ref().map_or(&ids[..], |before| shared.catalog.older_than(before, &ids));
    let mut bytes: Vec<u8> = off_heap::list();
    let mut last: Option<BackupId> = None;
    let mut listed_count = 0;
    bytes.push(b'[');
    for id in asked {
        let Some(listed) = shared.listed(id)? else { continue };
        let end = bytes.len();
        if listed_count > 0 {
            bytes.push(b',');
        }
        serde_json::to_writer(&mut bytes, &listed)
            .expect("details have only string keys, and memory takes what it gets");
        if listed_count == page.limit || (listed_count > 0 && bytes.len() > PAGE_BYTES) {
            bytes.truncate(end);
            bytes.push(b']');
            return Ok(Answer { bytes, more_before: last });
        }
        listed_count += 1;
        last = Some(id.clone());
    }
    bytes.push(b']');
    Ok(Answer { bytes, more_before: None })
}
