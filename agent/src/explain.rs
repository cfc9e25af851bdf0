//! `shunt explain`: asks the running agent what would happen to a connection, and why.

use std::fmt::Write;
use std::process::ExitCode;

use comfy_table::{Table, presets};
use shunt_core::explain::{Condition, Explanation, Outcome};
use shunt_core::flow::direction;
use shunt_core::policy::Action;
use shunt_core::service::Balance;
use shunt_core::status::StatusMode;

use crate::ask::{self, percent_encoded};
use crate::cli::{self, EX_USAGE, ExplainArgs, Format};

pub fn run(args: &ExplainArgs) -> ExitCode {
    let to = args.destination.ip().to_canonical();
    if let Some(from) = args.from.map(|from| from.to_canonical())
        && from.is_ipv4() != to.is_ipv4()
    {
        cli::complain(&format!(
            "{from} cannot connect to {to}: they are of two address families"
        ));
        return ExitCode::from(EX_USAGE);
    }
    match ask::get::<Explanation>(&args.socket, &path(args)) {
        Ok(answer) => {
            match args.output.output {
                Format::Json => match serde_json::to_string_pretty(&answer) {
                    Ok(text) => cli::answer(&text),
                    Err(error) => return cli::failed(&error.into()),
                },
                Format::Table => cli::answer(&table(&answer)),
            }
            ExitCode::SUCCESS
        }
        Err(error) => cli::failed(&error),
    }
}

fn path(args: &ExplainArgs) -> String {
    let mut path = format!(
        "/explain?workload={}&destination={}",
        percent_encoded(&args.workload),
        percent_encoded(&args.destination.to_string())
    );
    if args.inbound {
        path.push_str("&direction=inbound");
    }
    if let Some(from) = args.from {
        let _ = write!(path, "&from={}", percent_encoded(&from.to_string()));
    }
    path
}

fn table(answer: &Explanation) -> String {
    let mut text = headline(answer);
    for drift in &answer.drift {
        let _ = write!(text, "\nDRIFT: the kernel is not as configured: {drift}");
    }
    for doubt in &answer.doubts {
        let _ = write!(text, "\nDOUBT: {doubt}");
    }
    let mut steps = Table::new();
    steps.load_preset(presets::NOTHING);
    steps.set_header(["RULE", "MATCHED", "EVIDENCE"]);
    for step in &answer.steps {
        let matched = if step.matched { "yes" } else { "no" };
        steps.add_row([step.rule.as_str(), matched, step.evidence.as_str()]);
    }
    let _ = write!(text, "\n\n{steps}\n");
    let conditions = [
        ("gate", Some(&answer.gate), ["fresh", "stale"]),
        ("listener", Some(&answer.listener), ["there", "gone"]),
        ("port", answer.listening.as_ref(), ["listened on", "closed"]),
    ];
    for (name, condition, words) in conditions {
        if let Some(condition) = condition {
            let _ = write!(text, "\n{name}: {}", told(condition, words));
        }
    }
    if let Some(reason) = &answer.path_reason {
        let _ = write!(text, "\npath: {reason}");
    }
    tell_traffic(&mut text, answer);
    let configured = answer.configured.as_deref().unwrap_or("nothing");
    let _ = write!(
        text,
        "\nconfigured policy alone: {configured}\nmode: {}",
        answer.mode_reason
    );
    text
}

/// Where the agent sends it, and whether policy lets it.
fn tell_traffic(text: &mut String, answer: &Explanation) {
    // Writing to a String cannot fail.
    if let Some(service) = &answer.service {
        let balance = match service.balance {
            Balance::RoundRobin => "round robin",
            Balance::Random => "random",
        };
        let endpoints: Vec<_> = service.endpoints.iter().map(ToString::to_string).collect();
        let _ = match endpoints.as_slice() {
            [] => write!(
                text,
                "\nservice: {}, without endpoints: reset",
                service.name
            ),
            some => write!(
                text,
                "\nservice: {}, {balance} over {}",
                service.name,
                some.join(", ")
            ),
        };
    }
    for said in &answer.policy {
        let action = match said.action {
            Action::Allow => "allowed",
            Action::Deny => "DENIED",
        };
        let _ = write!(
            text,
            "\npolicy: {} {action} by {}, {} of {}",
            said.server,
            said.rule.as_deref().unwrap_or("default"),
            direction::as_str(said.direction),
            said.workload
        );
        if let Some(peer) = &said.peer {
            let _ = write!(text, ", peer {peer}");
        }
    }
}

fn headline(answer: &Explanation) -> String {
    let mode = match answer.mode {
        StatusMode::Ebpf => "ebpf",
        StatusMode::Iptables => "iptables",
        StatusMode::Off => "off",
    };
    let (way, who) = (direction::as_str(answer.direction), &answer.workload);
    let from = answer
        .client
        .map_or(String::new(), |client| format!("from {client} "));
    let outcome = match (answer.outcome, answer.path) {
        (Outcome::Captured, Some(path)) => format!("captured, path {}", path.as_str()),
        (Outcome::Captured, None) => "captured".to_owned(),
        (Outcome::Direct, _) => format!("direct, by rule {}", answer.rule),
        (Outcome::Refused, _) => format!("refused, by rule {}", answer.rule),
    };
    format!(
        "{who}, {way} {from}to {}, mode {mode}: {outcome}",
        answer.destination
    )
}

fn told(condition: &Condition, [yes, no]: [&str; 2]) -> String {
    let evidence = &condition.evidence;
    match condition.holds {
        Some(true) => format!("{yes} ({evidence})"),
        Some(false) => format!("{no} ({evidence})"),
        None => evidence.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_survives() {
        assert_eq!(
            percent_encoded("a/b&[::1]:80"),
            "a%2Fb%26%5B%3A%3A1%5D%3A80"
        );
    }
}
