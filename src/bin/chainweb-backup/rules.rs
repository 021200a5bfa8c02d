//! The flags of schedules and retention, as clap reads them, and what they mean together with the configuration files.

use std::time::Duration;

use chainweb_backup::{KeepRules, Schedule, TimeOfDay, parse_count, parse_interval, parse_time_of_day};
use clap::Args;

/// The rules of what is kept: those of `prune`, and after each good backup of `serve` and `make`.
#[derive(Args)]
pub(crate) struct Keep {
    /// Keep the newest N good backups
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = |t: &str| parse_count(t).map_err(|e| e.chain()))]
    keep_last: Option<u32>,
    /// Keep the newest good backup of each of the last N days that have one
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = |t: &str| parse_count(t).map_err(|e| e.chain()))]
    keep_daily: Option<u32>,
    /// Keep the newest good backup of each of the last N weeks that have one
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = |t: &str| parse_count(t).map_err(|e| e.chain()))]
    keep_weekly: Option<u32>,
    /// Keep the newest good backup of each of the last N months that have one
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = |t: &str| parse_count(t).map_err(|e| e.chain()))]
    keep_monthly: Option<u32>,
}

impl Keep {
    pub(crate) fn rules(&self) -> KeepRules {
        let Keep { keep_last, keep_daily, keep_weekly, keep_monthly } = *self;
        KeepRules { last: keep_last, daily: keep_daily, weekly: keep_weekly, monthly: keep_monthly }
    }
}

/// When `serve` makes backups by itself.
#[derive(Args)]
pub(crate) struct Times {
    /// Make a backup when the newest good one is older than INTERVAL, like 24h
    #[arg(long, value_name = "INTERVAL", allow_negative_numbers = true, value_parser = |t: &str| parse_interval(t).map_err(|e| e.chain()))]
    pub(crate) every: Option<Duration>,
    /// Make these backups at this time of the day (UTC), like 03:00 [default: any]
    #[arg(long, value_name = "HH:MM", value_parser = |t: &str| parse_time_of_day(t).map_err(|e| e.chain()))]
    pub(crate) at: Option<TimeOfDay>,
    /// Delay each of them by a random time below INTERVAL, like 10m [default: 0s]
    #[arg(long, value_name = "INTERVAL", allow_negative_numbers = true, value_parser = |t: &str| parse_interval(t).map_err(|e| e.chain()))]
    pub(crate) jitter: Option<Duration>,
    /// Back up the Pact databases in them, too
    #[arg(long)]
    pub(crate) backup_pact: bool,
}

impl Times {
    /// The schedule of the flags, or else those of the files.
    pub(crate) fn schedules(&self, from_files: Option<Vec<Schedule>>) -> Result<Vec<Schedule>, String> {
        let Times { every, at, jitter, backup_pact } = *self;
        if every.is_some() || at.is_some() {
            let one = Schedule::new(every, at, backup_pact, jitter.unwrap_or_default());
            return one.map(|one| vec![one]).map_err(|e| format!("--every and --at: {}", e.chain()));
        }
        let flags = [("--jitter", jitter.is_some()), ("--backup-pact", backup_pact)];
        match flags.into_iter().find(|(_, is_typed)| *is_typed) {
            None => Ok(from_files.unwrap_or_default()),
            Some((flag, _)) => Err(format!(
                "{flag} of serve is for scheduled backups: add --every INTERVAL or --at HH:MM (a single backup is made by the \
                 command make, or by a request make-backup?backupPact)"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::path::Path;

    use chainweb_backup::{Config, Policy};

    use super::*;
    use crate::plan::{Around, Exit, Plan, ServePlan, parse};

    const FILE: &str = "databaseDirectory: /d\nbackup: {schedule: [{every: 1h}, {at: '03:00', pact: true}], \
                        keep: {last: 5, daily: 7}, hooks: {before: [a, b], onVerified: [c], limitSeconds: 9}}";

    fn run(line: &str) -> Result<Plan, Exit> {
        let args = ["chainweb-backup"].into_iter().chain(line.split_whitespace()).map(OsString::from);
        let read_file = |_: &Path| Ok(FILE.to_owned());
        parse(args, &Around { env: &|_| None, read_file: &read_file, list_databases: &|_| Vec::new() })
    }

    fn serve(flags: &str) -> Config {
        match run(&format!("--config-file f {flags}")) {
            Ok(Plan::Serve(ServePlan { config, .. })) => config,
            other => panic!("{flags}: {other:?}"),
        }
    }

    fn times(config: &Config) -> Vec<String> {
        config.schedules.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn schedules_rules_and_hooks_come_from_flags_and_files() {
        let config = serve("");
        assert_eq!(times(&config), ["every 1h", "every 24h at 03:00"]);
        assert_eq!(config.keep, Policy { keep_last: 5, keep_daily: 7, ..Policy::default() });
        assert_eq!((config.hooks.before.len(), config.hooks.time_limit), (1, Duration::from_secs(9)));
        // A flag takes the place of the schedules of the files, or of one rule.
        let config = serve("--at 04:30 --backup-pact --jitter 5m --keep-daily 0 --keep-monthly 12");
        assert_eq!(times(&config), ["every 24h at 04:30"]);
        assert!(config.schedules[0].pact && config.schedules[0].jitter == Duration::from_secs(300));
        assert_eq!(config.keep, Policy { keep_last: 5, keep_monthly: 12, ..Policy::default() });
        assert_eq!(times(&serve("--every 90m")), ["every 90m"]);
        let Ok(Plan::Make(make)) = run("make --config-file f --keep-last 2 --if-older-than 20h") else {
            panic!("make")
        };
        assert_eq!((make.if_older_than, make.config.keep.keep_last), (Some(Duration::from_secs(72_000)), 2));
        assert_eq!((make.config.hooks.before.len(), make.config.schedules.len()), (1, 0));
        let Ok(Plan::Manage { hooks, .. }) = run("verify 1 --config-file f") else { panic!("verify") };
        assert_eq!(hooks.on_verified, [["c"]]);
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_remedy() {
        for (flags, told) in [
            ("--every 24", "`24` is not an interval: write a whole number with s, m, h or d, like 24h"),
            ("--every 5h --at 03:00", "--every and --at: an interval of 5h has no place in the day"),
            ("--at 25:00", "`25:00` is not a time of the day"),
            ("--jitter 5m", "--jitter of serve is for scheduled backups: add --every INTERVAL or --at HH:MM"),
            ("--backup-pact", "--backup-pact of serve is for scheduled backups"),
            ("make --if-older-than 20", "`20` is not an interval"),
        ] {
            let exit = run(&format!("--database-directory /d {flags}")).expect_err(flags);
            assert!(exit.code == 2 && exit.text.contains(told), "{flags}: {}", exit.text);
        }
    }
}
