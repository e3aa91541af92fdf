# Part of scripts/acceptance.sh: the transcript, and what is counted for the summary.
# shellcheck shell=bash disable=SC2154 # transcript, work and others are those of acceptance.sh

# Texts that never reach the terminal or the transcript.
secrets=()
agreed=0 differences=() skipped=() left=()

# Copies stdin to stdout without secrets and account ids. Access tokens have their form, others are known by their text.
mask() {
  local line secret
  while IFS= read -r line || [[ -n $line ]]; do
    for secret in "${secrets[@]}"; do
      line=${line//"$secret"/***}
    done
    printf '%s\n' "$line"
  done | sed -E 's#\ba/[0-9a-f]{32}\b#a/***#g; s#eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+#***#g; s#([Bb]earer )[A-Za-z0-9._-]+#\1***#g'
}

say() {
  printf '%s\n' "$*" | mask | tee -a "$transcript"
}

note() {
  printf '%s\n' "$*" | mask >>"$transcript"
}

# Compares an assumption of the simulated cloud with what this one does.
expect() {
  local what=$1 assumed=$2 seen=$3
  if [[ $seen == "$assumed" ]]; then
    agreed=$((agreed + 1))
    say "agrees   $what: $seen"
  else
    differences+=("$what: assumed $assumed, seen ${seen:-nothing}")
    say "DIFFERS  $what: assumed $assumed, seen ${seen:-nothing}"
  fi
}

skip() {
  skipped+=("$1: $2")
  say "SKIPPED  $1: $2"
}

# Notes what could not be removed, with the command that removes it.
leave() {
  left+=("$1: $2")
  say "LEFT     $1: $2"
}

# Runs a command of the program: stdout into $work/out, stderr into $work/STEP.err, both into the transcript. Ends the script if it fails.
# The command is in the background, so that a signal is obeyed at once.
child=''
run_step() {
  local step=$1 begin=$SECONDS status=0
  shift
  say "== $step: snapferry ${*:2}"
  "$@" >"$work/out" 2>"$work/$step.err" </dev/null &
  child=$!
  wait "$child" || status=$?
  child=''
  mask <"$work/out" >>"$transcript"
  mask <"$work/$step.err" >>"$transcript"
  say "$step: exit code $status after $((SECONDS - begin)) s"
  if ((status)); then
    # A step that logs JSON has its error in a line of that form, others as text.
    say "$(jq --raw-output --raw-input 'fromjson? | select(.level == "ERROR") | .message, (.hint // empty)' "$work/$step.err")"
    say "$(grep -v '^{' "$work/$step.err" | tail -n 5)"
    exit 1
  fi
}

# Ends a command that a signal has interrupted the wait for. It removes on its own what it can.
stop_child() {
  [[ -n $child ]] || return 0
  kill -TERM "$child" 2>/dev/null
  wait "$child" 2>/dev/null
  child=''
}

summary() {
  say "== $agreed assumptions agree, ${#differences[@]} differ, ${#skipped[@]} were not tried, ${#left[@]} things are left behind"
  for line in "${differences[@]}"; do say "DIFFERS  $line"; done
  for line in "${skipped[@]}"; do say "SKIPPED  $line"; done
  for line in "${left[@]}"; do say "LEFT     $line"; done
}
