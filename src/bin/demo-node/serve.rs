//! The service API of the demo node: the backup library mounted in a plain `rouille::Server`, as an embedder would.
//!
//! Invariants: with the API off no service exists and every path is 404; after [`Server::shutdown`] no handler holds
//! the service, hence none holds RocksDB. The listener itself lives until the process ends: rouille's graceful stop
//! does not return while clients poll.

use crate::fault::{Context, Result, fault};
use crate::run::RunArgs;
use chainweb_backup::rocksdb::DB;
use chainweb_backup::rouille::{Request, Response, Server as Listener};
use chainweb_backup::{Config, Service, Sources};
use parking_lot::Mutex;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long shutdown waits for requests in flight.
const MAX_SHUTDOWN_WAIT: Duration = Duration::from_secs(5);

/// Empty when the API is off, and after shutdown.
type Mounted = Arc<Mutex<Option<Arc<Service>>>>;

/// The running server.
pub struct Server {
    mounted: Mounted,
}

/// Starts the service, unless the API is off, and the listener, then writes the address file.
pub fn start(args: &RunArgs, db: Arc<DB>) -> Result<Server> {
    let service = if args.backup_api_enabled() { Some(Arc::new(start_service(args, db)?)) } else { None };
    let enabled = service.is_some();
    let mounted: Mounted = Arc::new(Mutex::new(service));
    let in_handler = mounted.clone();
    let address = (args.service_interface.as_str(), args.service_port);
    let listener = Listener::new(address, move |request| answer(&in_handler, enabled, request))
        .context(|| format!("listen on {} port {}", address.0, address.1))?;
    let address = listener.server_addr();
    // Never joined: it ends with the process.
    std::thread::Builder::new()
        .name("http".into())
        .spawn(move || listener.run())
        .context(|| "start the HTTP thread".into())?;
    if let Some(path) = &args.address_file {
        write_atomically(path, &address.to_string()).context(|| format!("write {}", path.display()))?;
    }
    log::info!("serve address={address} backup_api={enabled}");
    Ok(Server { mounted })
}

impl Server {
    /// Cancels a running backup and lets go of RocksDB. Requests from now on are answered 503.
    pub fn shutdown(self) {
        let Some(mut service) = self.mounted.lock().take() else { return };
        let start = Instant::now();
        while start.elapsed() < MAX_SHUTDOWN_WAIT {
            match Arc::try_unwrap(service) {
                Ok(service) => return service.shutdown(),
                Err(in_use) => service = in_use,
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        log::warn!("leave requests in flight after wait_seconds={}", MAX_SHUTDOWN_WAIT.as_secs());
    }
}

fn start_service(args: &RunArgs, db: Arc<DB>) -> Result<Service> {
    let directory = args.backup_directory.clone().unwrap_or_else(|| args.database_directory.join("backups"));
    let config = Config {
        api_enabled: true,
        chainweb_version: Some(args.chainweb_version.clone()),
        node_version: Some(concat!("demo-node/", env!("CARGO_PKG_VERSION")).into()),
        ..Config::new(directory)
    };
    let sources = Sources::embedded(db, &args.database_directory);
    Service::start(config, sources).map_err(|e| fault(format!("start the backup service: {}", e.chain())))
}

fn answer(mounted: &Mounted, enabled: bool, request: &Request) -> Response {
    // A clone, so that no request waits for another one.
    let service = mounted.lock().clone();
    match service {
        Some(service) => service.handle(request).unwrap_or_else(Response::empty_404),
        None if enabled => Response::text("shutting down").with_status_code(503),
        None => Response::empty_404(),
    }
}

/// A reader sees the whole address or no file.
fn write_atomically(path: &Path, content: &str) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    std::fs::write(&temporary, content)?;
    std::fs::rename(&temporary, path)
}
