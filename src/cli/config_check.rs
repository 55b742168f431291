//! `leitstand config check`: every problem at once, or the effective values.

use super::BindArgs;

pub(super) fn run(args: &BindArgs) -> Result<(), String> {
    let config = super::env::config(args)?;
    for (name, value) in config.effective() {
        println!("{name}={value}");
    }
    for warning in &config.warnings {
        eprintln!("leitstand: warning: {warning}");
    }
    Ok(())
}
