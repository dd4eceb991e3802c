# What `credential_process` runs where role credentials lie in files: sh SCRIPT DIRECTORY PROFILE PATH
lying "$1" "$2"
echo "broker: there are no valid credentials here at the moment; see the terminal where broker runs" >&2
exit 1
