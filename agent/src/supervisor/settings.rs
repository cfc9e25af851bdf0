//! A changed configuration file: what can be applied live is, the rest is said to need a restart.

use shunt_core::config::Config;
use shunt_core::workload::{WorkloadName, WorkloadSpec};

use super::Supervisor;
use super::config_source::ConfigSource;
use super::enrolment::needs_proxy;
use super::lifecycle::{Phase, Workload};
use super::node::tell_of_refused;
use crate::cli::RunArgs;
use crate::ipc::{ToWorker, Traffic};
use crate::run;

impl Supervisor {
    /// A correct file is applied, a wrong one refused whole.
    pub(super) fn reload(&mut self, args: &RunArgs, source: &mut ConfigSource) {
        let texts = source.texts();
        let read = run::read_config(args, source.path(), &texts).and_then(|new| {
            source.follow(new.bootstrap.as_deref());
            let before =
                Some(&self.served.loaded).filter(|_| new.bootstrap == self.config.bootstrap);
            let loaded = run::read_bootstrap(&new, before, &texts)?;
            Ok((new, loaded))
        });
        // Thousands of routes take some tenths of a second.
        self.keep_gates();
        let (new, loaded) = match read {
            Ok(read) => read,
            Err(error) => {
                tracing::error!("the changed configuration is wrong, the old one stays\n{error}");
                self.served.refused = Some(error.to_string());
                self.tell_dump();
                return;
            }
        };
        source.follow_sources(&loaded.sources);
        tell_of_refused(&self.served.loaded, &loaded);
        let was_refused = self.served.refused.take().is_some();
        self.needs_start = needs_restart(&self.config, &new);
        if (&new, &loaded.bootstrap) == (&self.config, &self.served.loaded.bootstrap) {
            if was_refused || loaded.dump != self.served.loaded.dump {
                self.served.loaded = loaded;
                self.tell_dump();
            }
            return;
        }
        if loaded.bootstrap == self.served.loaded.bootstrap {
            self.served.loaded = loaded;
            self.tell_dump();
        } else if let Err(error) = self.replace_bootstrap(loaded) {
            let error = format!("{error:#}");
            tracing::error!(
                error = error.as_str(),
                "the changed configuration cannot be served, the old one stays"
            );
            self.served.refused = Some(error);
            self.tell_dump();
            return;
        }
        self.config.bootstrap.clone_from(&new.bootstrap);
        tracing::info!("the configuration changed");
        for field in &self.needs_start {
            tracing::warn!(field, "takes effect at the next start");
        }
        let gone: Vec<WorkloadName> = self
            .config
            .workloads
            .iter()
            .map(|spec| &spec.name)
            .filter(|name| !new.workloads.iter().any(|spec| spec.name == **name))
            .cloned()
            .collect();
        // What did not change in the file keeps whatever the admin API made of it.
        let changed: Vec<WorkloadSpec> = new
            .workloads
            .iter()
            .filter(|spec| !self.config.workloads.contains(spec))
            .cloned()
            .collect();
        let needed_proxy = needs_proxy(&self.config);
        self.config.timeouts = new.timeouts;
        self.config.limits = new.limits;
        if self.config.log.level != new.log.level
            && let Err(error) = self.level.set(&new.log.level)
        {
            tracing::error!(%error, "cannot change the log level");
        }
        self.config.splice_after = new.splice_after;
        self.config.log = new.log;
        self.config.mode = new.mode;
        self.config.workloads = new.workloads;
        let governed = (&self.config.services, &self.config.policy) != (&new.services, &new.policy);
        if governed {
            (self.config.services, self.config.policy) = (new.services, new.policy);
            self.backends.govern(&self.config);
            self.tell_traffic();
        }
        for name in &gone {
            self.withdraw(name);
        }
        for spec in changed {
            self.desire(spec);
        }
        if governed || needs_proxy(&self.config) != needed_proxy {
            self.desire_all_anew();
        }
        self.tell_settings();
        self.publish();
        self.reloaded = true;
        self.say_in_force();
    }

    /// The end of a reload, once every workload that is served has what the file says.
    pub(super) fn say_in_force(&mut self) {
        let pending = |workload: &Workload| {
            matches!(
                workload.phase,
                Phase::Serving {
                    change: Some(_),
                    ..
                }
            )
        };
        if self.reloaded && !self.workloads.values().any(pending) {
            self.reloaded = false;
            tracing::info!("the changed configuration is in force");
        }
    }

    pub(super) fn tell_traffic(&mut self) {
        let traffic = Traffic {
            services: self.config.services.clone(),
            policy: self.config.policy.clone(),
        };
        match traffic.messages() {
            Ok(messages) => messages
                .iter()
                .for_each(|message| self.data_plane.tell(message, Vec::new())),
            Err(error) => tracing::error!(%error, "cannot tell the data plane services and policy"),
        }
    }

    pub(super) fn tell_settings(&mut self) {
        let settings = ToWorker::Settings {
            timeouts: self.config.timeouts,
            limits: self.config.limits,
            splice_after: self.config.splice_after,
            log_level: self.config.log.level.clone(),
        };
        self.data_plane.tell(&settings, Vec::new());
    }
}

/// Fields whose change is not applied to a running agent.
fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let rows = [
        ("concurrency", old.concurrency != new.concurrency),
        ("ports", old.ports != new.ports),
        ("mark", old.mark != new.mark),
        ("log.format", old.log.format != new.log.format),
        ("log.access", old.log.access != new.log.access),
        ("admin", old.admin != new.admin),
        ("state_dir", old.state_dir != new.state_dir),
        ("bpffs", old.bpffs != new.bpffs),
        ("kubernetes", old.kubernetes != new.kubernetes),
    ];
    rows.into_iter()
        .filter(|(_, changed)| *changed)
        .map(|(field, _)| field)
        .collect()
}
