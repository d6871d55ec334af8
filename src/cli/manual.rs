//! The hidden subcommands `manual` and `completions`: what a package installs besides the program, made of the same
//! definitions as its help.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Command, CommandFactory};
use clap_complete::{Shell, generate};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::Cli;

/// What each page has at its end, in its own words.
struct Ending {
    /// Path of the subcommand, as in `state init`; empty for the program itself.
    command: &'static str,
    sections: &'static [Section],
}

struct Section {
    name: &'static str,
    items: &'static [(&'static str, &'static str)],
}

const fn section(name: &'static str, items: &'static [(&'static str, &'static str)]) -> Section {
    Section { name, items }
}

const STATUS: Section = section(
    "EXIT STATUS",
    &[
        ("0", "The program has done what it was asked for; the server has shut its TPM down in order."),
        ("1", "Something failed; the last line of the log says what."),
        ("2", "The command line or the configuration file is wrong."),
    ],
);

/// Any other subcommand has the section [`STATUS`].
const ENDINGS: [Ending; 2] = [
    Ending {
        command: "",
        sections: &[
            STATUS,
            section(
                "ENVIRONMENT",
                &[
                    ("LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES", "With --socket-activation: the socket to serve."),
                    ("NOTIFY_SOCKET", "Where to say that the TPM is up, as services of Type=notify do."),
                    (
                        "JOURNAL_STREAM",
                        "If it names standard error, lines of the log have a priority in front and no time of their own.",
                    ),
                ],
            ),
            section(
                "FILES",
                &[
                    ("/etc/vfio-user-tpm/NAME.toml", "Flags of the unit vfio-user-tpm@NAME.service, for --config."),
                    ("/run/vfio-user-tpm/NAME/", "Socket and description of that unit, for the VMM."),
                    ("/var/lib/vfio-user-tpm/NAME/", "State of its TPM."),
                ],
            ),
        ],
    },
    Ending {
        command: "run",
        sections: &[section(
            "EXIT STATUS",
            &[
                ("QEMU's", "128 and the signal's number if it died of a signal."),
                ("1", "The server failed, and QEMU's own status tells of no failure."),
                ("2", "The command line or the configuration file is wrong."),
                ("126, 127", "QEMU cannot be started; there is no such program."),
            ],
        )],
    },
];

/// Write manual pages into a folder, for packages
#[derive(Debug, Args)]
pub(super) struct ManualArgs {
    /// Folder for the pages; it has to be there
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Print completions for a shell, for packages
#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// Which shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

pub(super) fn completions(args: &CompletionsArgs) -> anyhow::Result<()> {
    let name = env!("CARGO_PKG_NAME");
    let mut script = Vec::new();
    generate(args.shell, &mut for_people(), name, &mut script);
    // clap_complete (4.6.11) sets a variable of bash's to one name, and asks for another, where the program's has dashes.
    let [set, asked] = ["__", "__subcmd__"].map(|dash| format!("{}__subcmd__", name.replace('-', dash)));
    let script = String::from_utf8(script)?.replace(&asked, &set);
    io::stdout().write_all(script.as_bytes()).context("cannot print the completions")
}

pub(super) fn manual(args: &ManualArgs) -> anyhow::Result<()> {
    let mut program = for_people();
    program.build();
    write_pages(&program, &args.folder, "", &[])
}

/// The definitions without what is hidden: processes of our own, and these two.
fn for_people() -> Command {
    let whole = Cli::command();
    let shown: Vec<_> = whole.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect();
    let mut program = Command::new(env!("CARGO_PKG_NAME")).disable_help_subcommand(true);
    program = program.version(env!("CARGO_PKG_VERSION")).subcommands(shown);
    program = program.args(whole.get_arguments().cloned()).groups(whole.get_groups().cloned());
    program = program.args_conflicts_with_subcommands(true).subcommand_negates_reqs(true);
    let about = whole.get_about().cloned().unwrap_or_default();
    let long_about = whole.get_long_about().cloned().unwrap_or_else(|| about.clone());
    program.about(about).long_about(long_about)
}

/// Writes the page of a command, and those of its subcommands. `above` are the pages that lead to it.
fn write_pages(command: &Command, folder: &Path, path: &str, above: &[String]) -> anyhow::Result<()> {
    let page = page_name(command);
    let below: Vec<_> = command.get_subcommands().filter(|command| command.get_name() != "help").collect();
    let others: Vec<_> = above.iter().cloned().chain(below.iter().map(|command| page_name(command))).collect();
    let file = folder.join(format!("{page}.1"));
    let written = File::create(&file).map(BufWriter::new).and_then(|mut out| {
        write_page(command, path, &others, &mut out)?;
        out.flush()
    });
    written.with_context(|| format!("cannot write {}", file.display()))?;
    let above = [above, &[page]].concat();
    below.into_iter().try_for_each(|below| {
        let path = format!("{path} {}", below.get_name());
        write_pages(below, folder, path.trim_start(), &above)
    })
}

fn page_name(command: &Command) -> String {
    command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned()
}

fn write_page(command: &Command, path: &str, others: &[String], out: &mut impl Write) -> io::Result<()> {
    let source = format!("vfio-user-tpm {}", env!("CARGO_PKG_VERSION"));
    // That of the help: all flags in a row would say nothing.
    let usage = command.clone().render_usage().to_string();
    let command = command.clone().override_usage(usage.trim_start_matches("Usage: ").to_owned());
    let has_subcommands = command.get_subcommands().next().is_some();
    let man = Man::new(command).source(source).manual("vfio-user-tpm");
    man.render_title(out)?;
    man.render_name_section(out)?;
    man.render_synopsis_section(out)?;
    man.render_description_section(out)?;
    man.render_options_section(out)?;
    if has_subcommands {
        man.render_subcommands_section(out)?;
    }
    let ending = ENDINGS.iter().find(|ending| ending.command == path);
    let mut roff = Roff::new();
    for Section { name, items } in ending.map_or(&[STATUS][..], |ending| ending.sections) {
        roff.control("SH", [*name]);
        for (term, text) in *items {
            roff.control("TP", []);
            roff.text([bold(*term)]);
            roff.text([roman(*text)]);
        }
    }
    if !others.is_empty() {
        roff.control("SH", ["SEE ALSO"]);
        let mut line = Vec::new();
        for (index, other) in others.iter().enumerate() {
            line.push(roman(if index == 0 { "" } else { ", " }));
            line.push(bold(other));
            line.push(roman("(1)"));
        }
        roff.text(line);
    }
    roff.to_writer(out)
}
