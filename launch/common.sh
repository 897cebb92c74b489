# shellcheck shell=bash disable=SC2034  # the scripts read what is set here
# What the launch scripts share: settings as --name=value, a dry run, messages.
# Sourced, not run. A script declares its settings empty and calls
#
#   parse "name other-name" "$@"    sets $name, $other_name, $extra after --
#   need name "what it is"          once for each that must be there; then
#   all_given

# Exit statuses of the program, as rlhf_jax/exits.py explains them.
REFUSED=2
STOPPED=3
PREEMPTED=75
INTERRUPTED=130

dry_run=""
extra=()
missing=()

fail() {
  echo "error: $*" >&2
  exit 2
}

# The comment at the head of the script.
usage() {
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
}

parse() {
  local known=" ${1//$'\n'/ } " key
  shift
  while (($#)); do
    case $1 in
      --help) usage; exit 0 ;;
      --dry-run) dry_run=yes ;;
      --) shift; extra=("$@"); return ;;
      --*=*)
        key=${1%%=*}
        key=${key#--}
        [[ $known == *" $key "* ]] \
          || fail "there is no setting --$key; see --help"
        printf -v "${key//-/_}" %s "${1#*=}" ;;
      *) fail "'$1' is no --name=value; see --help. Flags of the program" \
              "itself stand after --" ;;
    esac
    shift
  done
}

need() {
  local variable=${1//-/_}
  [[ -n ${!variable} ]] || missing+=("--$1=... is missing: $2")
}

all_given() {
  ((${#missing[@]} == 0)) && return
  printf 'error: %s\n' "${missing[@]}" >&2
  exit 2
}

need_bucket() {
  [[ -z $workdir || $workdir == gs://?* ]] \
    || missing+=("--workdir=$workdir is no bucket, which all machines see: \
give gs://BUCKET/RUN")
}

# Whole numbers, where given.
need_numbers() {
  local key variable
  for key in "$@"; do
    variable=${key//-/_}
    [[ ${!variable} =~ ^[0-9]*$ ]] \
      || missing+=("--$key=${!variable} is no whole number")
  done
}

# A command as one could type it.
quoted() {
  local word line=()
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=@,+-]+$ ]]; then
      line+=("$word")
    else
      line+=("${word@Q}")
    fi
  done
  echo "${line[*]}"
}

# Runs a command, or only prints it under --dry-run.
run() {
  if [[ -n $dry_run ]]; then
    quoted "$@"
  else
    "$@"
  fi
}

# Of the statuses of a run's processes, in the order in which they ended, the
# one by which to go on: that of one which knows why, else the first failure.
telling() {
  local known status
  for known in $REFUSED $STOPPED $INTERRUPTED $PREEMPTED; do
    for status in "$@"; do
      [[ $status != "$known" ]] || { echo "$status"; return; }
    done
  done
  for status in "$@"; do
    [[ $status == 0 ]] || { echo "$status"; return; }
  done
  echo 0
}

# After the status $1 no start helps, or none is wanted.
is_final() {
  case $1 in
    0 | "$REFUSED" | "$STOPPED" | "$INTERRUPTED") ;;
    *) false ;;
  esac
}
