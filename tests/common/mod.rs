pub mod tpm_commands;
