#!/usr/bin/env bash
# Push die letzten N Meldungen aus einer JSONL/JSON-Stream-Datei sicher zum Leitstand.
#
#   FILE=feed.jsonl URL=http://localhost:8788 DOMAIN=example.com N=100 push_leitstand.sh
#
# FILE    JSON objects, one a line or pretty-printed. They are sent as they are, without the white space between their
#         parts. What the service could not store (NaN, 1e999, bytes that are no UTF-8) is refused before anything is sent.
# URL     base address of the server
# DOMAIN  domain of all events
# N       how many of the last values of FILE to send
# LEITSTAND_TOKEN, else CHRONIK_TOKEN: sent as X-Auth, never on a command line. Without one no header is sent.
# LEITSTAND_TOKEN_FILE, else CHRONIK_TOKEN_FILE: a file with the token, one line beside comments (#).
# LEITSTAND_TIMEOUT (5), LEITSTAND_RETRIES (3), LEITSTAND_BACKOFF (0.5), or CHRONIK_…: as in clients/PROTOCOL.md.
#
# A proxy and certificates come from the environment, as curl reads it: http_proxy (in small letters only), HTTPS_PROXY,
# ALL_PROXY, NO_PROXY, SSL_CERT_FILE, SSL_CERT_DIR, CURL_CA_BUNDLE. ~/.curlrc and ~/.jq have no say.
#
# Exit codes: 0 all sent, 1 not all sent, 2 wrong settings, 127 jq or curl is missing; 129, 130, 143 stopped by a signal
# (it says with which N to go on).
set -euo pipefail
# What the caller has set for his own shell (SHELLOPTS, BASHOPTS, bash -f) must not decide which parts are found.
set +f
shopt -u failglob nullglob
export LC_ALL=C

max_event_bytes=1000000
max_request_bytes=524288
max_request_events=10000
max_answer_bytes=65536

say() { printf '%s\n' "$*" >&2; }
wrong() { say "$*"; exit 2; }

# The value of a setting, and in `source` the name that messages use. An empty variable counts as absent.
setting() {
  local name
  for name in "LEITSTAND_$1" "CHRONIK_$1"; do
    source=$name value=${!name:-}
    [ -z "$value" ] || return 0
  done
  source="LEITSTAND_$1" value=$2
}

[ -n "${FILE:-}" ] || wrong "Pfad zur JSONL/JSON-Stream-Datei fehlt (FILE)"
[ -n "${URL:-}" ] || wrong "Basis-URL vom Leitstand fehlt (URL)"
[ -n "${DOMAIN:-}" ] || wrong "Domain fehlt (DOMAIN)"
[ -n "${N:-}" ] || wrong "Anzahl letzter Events fehlt (N)"
[[ $N =~ ^[0-9]{1,15}$ ]] || wrong "N muss eine ganze Zahl sein, nicht '$N'"
[[ $URL =~ ^https?://[^/?#]+[^?#]*$ ]] || wrong "URL muss mit http:// oder https:// beginnen und darf keine Abfrage haben"
[[ -r $FILE && ! -d $FILE ]] || wrong "Datei ist nicht lesbar: $FILE (FILE)"

seconds='^[0-9]{1,5}(\.[0-9]{1,9})?$'
setting TIMEOUT 5
timeout=$value
[[ $timeout =~ $seconds && $timeout =~ [1-9] ]] || wrong "$source muss eine Zahl von Sekunden über 0 sein, nicht '$timeout'"
setting RETRIES 3
retries=$value
[[ $retries =~ ^[0-9]{1,6}$ ]] || wrong "$source muss eine ganze Zahl sein, nicht '$retries'"
retries=$((10#$retries))
setting BACKOFF 0.5
backoff=$value
[[ $backoff =~ $seconds ]] || wrong "$source muss eine Zahl von Sekunden sein, nicht '$backoff'"
setting TOKEN ""
token=$value
if [ -z "$token" ]; then
  setting TOKEN_FILE ""
  if [ -n "$value" ]; then
    [[ -f $value && -r $value ]] || wrong "$source ist keine lesbare Datei: $value"
    token=$(head -c 65536 -- "$value" | tr -d '\0' | sed -e 's/^[[:space:]]*//' -e 's/[[:space:]]*$//' -e '/^#/d' -e '/^$/d')
    [[ -n $token && $token != *$'\n'* ]] || wrong "$source muss genau eine Zeile mit einem Token enthalten: $value"
  fi
fi
[[ $token =~ ^([[:graph:]]([[:graph:] ]*[[:graph:]])?)?$ ]] || wrong "$source enthält Zeichen, die kein Header tragen kann"
# The programs that run below need no token in their environment.
export -n LEITSTAND_TOKEN CHRONIK_TOKEN
unset POSIXLY_CORRECT

need() { command -v "$1" >/dev/null 2>&1 || { say "Fehlt: $1"; exit 127; }; }
need jq
need curl

# How far it has come, for whoever stops it. `count` events are perhaps under way.
sent=0 total=0 count=0 sending=no
stopped() {
  trap - INT TERM HUP
  if [ "$sending" = no ] && [ "$sent" -eq 0 ]; then
    say "✗ Abgebrochen: nichts gesendet"
  else
    say "✗ Abgebrochen: $sent von $total Events bestätigt."
    say "  Weiter mit N=$((total - sent)) und derselben Datei, solange nichts an sie angehängt wurde."
    if [ "$sending" = yes ]; then say "  Die nächsten $count Events können schon gespeichert sein; dann stehen sie danach doppelt da."; fi
  fi
  exit "$1"
}
trap 'stopped 129' HUP
trap 'stopped 130' INT
trap 'stopped 143' TERM

work=$(mktemp -d) || { say "✗ Nichts gesendet: kein Verzeichnis für Zwischendateien (TMPDIR)"; exit 1; }
trap 'rm -rf "$work"' EXIT
mkdir "$work/home"
# A ~/.jq could give a filter another meaning.
own_jq() { HOME="$work/home" jq "$@"; }

nothing() { say "✗ Nichts gesendet: $*"; exit 1; }

# 1) One value a line, of these the last N. Everything is looked at before anything is sent. jq reads the values, but what
#    is sent is cut out of the file itself: jq would make other numbers of some, and leave out keys that come twice.
# Messages are kept in variables: the disk of $work may be what is full.
said=$(cat -- "$FILE" 2>&1 >"$work/feed") || nothing "$FILE kann nicht gelesen oder zwischengespeichert werden: $said"
said=$(own_jq . "$work/feed" 2>&1 >/dev/null) || nothing "$FILE ist kein JSON-Strom: ${said%%$'\n'*}"
if ! { cat "$work/feed" && echo; } | own_jq -Rr . | cmp -s - <(cat "$work/feed" && echo) ||
  [ "$(tr -d '\0' <"$work/feed" | wc -c)" -ne "$(wc -c <"$work/feed")" ]; then
  nothing "$FILE ist kein UTF-8. Die Bytes würden sonst ersetzt; bitte die Datei berichtigen."
fi
said=$(awk '
  function refused(why) { printf "Event %d %s", events + 1, why >"/dev/stderr"; failed = 1; exit 1 }
  function looked_at(text,  tokens, count, i, value) {
    count = split(text, tokens, /[:, \t\r]+/)
    for (i = 1; i <= count; i++) {
      if (tokens[i] == "" || tokens[i] == "true" || tokens[i] == "false" || tokens[i] == "null") continue
      if (tokens[i] !~ /^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?$/) refused("enthält " substr(tokens[i], 1, 30) ", das ist kein JSON")
      value = tokens[i] + 0
      if (value != 0 && value == value + value) refused("enthält " substr(tokens[i], 1, 30) ", eine Zahl, die kein double fasst")
    }
  }
  function bare(text) { gsub(/[ \t\r]+/, "", text); return text }
  # What stands between two strings, or before, behind and without them.
  function between(text,  parts, count, i, at, sign) {
    count = split(text, parts, /[][{}]/); at = 0
    for (i = 1; i <= count; i++) {
      if (depth == 0) { if (parts[i] !~ /^[ \t\r]*$/) refused("ist kein JSON-Objekt") }
      else if (parts[i] != "") { looked_at(parts[i]); printf "%s", bare(parts[i]) }
      if (i == count) break
      at += length(parts[i]) + 1
      sign = substr(text, at, 1)
      if (depth == 0 && sign != "{") refused("ist kein JSON-Objekt")
      printf "%s", sign
      if (sign == "{" || sign == "[") depth++
      else if (--depth == 0) { printf "\n"; events++ }
    }
  }
  {
    count = split($0, quoted, "\"")
    for (part = 1; part <= count; part++) {
      if (! string) { between(quoted[part]); escaped = 0 }
      else {
        if (quoted[part] ~ /[\001-\037]/) refused("enthält ein Steuerzeichen in einem Text")
        printf "%s", quoted[part]
        match(quoted[part], /\\*$/)
        escaped = RLENGTH % 2
      }
      if (part == count) break
      if (depth == 0) refused("ist kein JSON-Objekt")
      printf "\""
      if (! escaped) string = ! string
    }
    if (string) refused("enthält einen Zeilenumbruch in einem Text")
  }
  END { if (! failed && (string || depth)) refused("ist nicht zu Ende"); exit failed }' "$work/feed" 2>&1 >"$work/all") || nothing "${said%%$'\n'*}"
tail -n "$((10#$N))" "$work/all" >"$work/lines" || nothing "kein Platz für Zwischendateien in $work (TMPDIR)"
total=$(wc -l <"$work/lines")
# shellcheck disable=SC2016 # jq's variable, not the shell's
domain=$(own_jq -rn --arg domain "$DOMAIN" '$domain | @uri')
target="${URL%/}/v1/ingest?domain=$domain"
old_target="${URL%/}/ingest/$domain"

# 2) Requests of at most 10,000 events and 512 KiB; an event that is larger than that goes alone.
said=$(awk -v events=$max_request_events -v bytes=$max_request_bytes -v most=$max_event_bytes -v total="$total" -v directory="$work" '
  length($0) > most { printf "Event %d der letzten %d ist größer als %d Bytes. Bitte kürzen.", NR, total, most >"/dev/stderr"; exit 1 }
  {
    if (part == "" || count >= events || size + length($0) + 1 > bytes) {
      if (part != "") close(part)
      part = sprintf("%s/part-%09d", directory, ++parts); count = size = 0
    }
    print >part; count++; size += length($0) + 1
  }' "$work/lines" 2>&1 >/dev/null) || nothing "${said%%$'\n'*}"

# The forms that servers take: "new", "array" (no NDJSON) and "old" (the path before /v1). The one that was good stays.
form=new

# Sends one part; 0 if it was acknowledged. Else `reason`, `retryable` and `written` say why.
attempt() {
  local part=$1 forms=" " next
  while true; do
    forms+="$form "
    if request "$part"; then return 0; fi
    # An answer that is not whole says nothing about the form.
    [ "$written" != maybe ] || return 1
    case $status:$form in
      404:old | 405:old) next=new ;;
      404:* | 405:*) next=old ;;
      415:new) [ "$(wc -l <"$part")" -gt 1 ] || return 1; next=array ;;
      *) return 1 ;;
    esac
    [[ $forms != *" $next "* ]] || return 1
    form=$next
  done
}

# Sends one part in one form.
request() {
  local part=$1 code=0 report connected text type=application/x-ndjson to=$target
  status=000
  if [ "$form" != new ] || [ "$(wc -l <"$part")" -eq 1 ]; then
    type=application/json
    if [ "$(wc -l <"$part")" -gt 1 ]; then
      if ! { printf '[' && paste -sd , "$part" && printf ']'; } >"$work/array" 2>"$work/error"; then
        reason=$(head -n 1 "$work/error") retryable=no written=no
        return 1
      fi
      part=$work/array
    fi
    if [ "$form" = old ]; then to=$old_target; fi
  fi
  local -a auth=()
  if [ -n "$token" ]; then
    exec {header}< <(printf 'x-auth: %s\n' "$token")
    auth=(-H "@/dev/fd/$header")
  fi
  : >"$work/body"
  : >"$work/head"
  report=$(curl -q -sS --no-location --max-time "$timeout" --http1.1 "${auth[@]}" \
    -H "content-type: $type" -H 'accept: application/problem+json, */*' -H 'expect:' --data-binary "@$part" \
    -D "$work/head" -o "$work/body" --max-filesize 1000000 \
    -w '%{http_code} %{time_connect}' "$to" 2>"$work/error") || code=$?
  if [ -n "$token" ]; then exec {header}<&-; fi
  read -r status connected <<<"$report" || true
  text=$(head -c "$max_answer_bytes" "$work/body" | tr -d '\0')
  retry_after=$(tr -d '\r' <"$work/head" | sed -n 's/^[Rr][Ee][Tt][Rr][Yy]-[Aa][Ff][Tt][Ee][Rr]:[[:space:]]*\([0-9]\{1,9\}\)[[:space:]]*$/\1/p' | tail -n 1)
  retry_after=$((10#${retry_after:-0}))
  if ((retry_after > 60)); then retry_after=0; fi

  if ((code != 0)); then
    # The address of a proxy may have a password in it.
    reason=$(head -n 1 "$work/error" | sed 's#//[^/ ]*@#//#g') retryable=yes written=maybe
    case $code in
      # No connection, or none that is trusted: nothing was sent.
      5 | 6 | 7 | 35 | 53 | 54 | 58 | 59 | 60 | 66 | 77 | 80 | 82 | 83 | 90 | 91 | 97) written=no ;;
      28) if [[ ! ${connected:-0} =~ [1-9] ]]; then written=no; fi ;;
      # Nothing was sent, and would not be the next time.
      2 | 3 | 4 | 26 | 43) retryable=no written=no ;;
      # The answer cannot be kept here, or is too long.
      23 | 27 | 63) retryable=no ;;
    esac
    return 1
  fi
  reason="Status $status $(printf '%s' "$text" | head -c 500)"
  case $status in
    200 | 202)
      # White space around it aside; read takes that off.
      read -r -d '' text <<<"$text" || true
      if [ "$text" = ok ] && [ "$(wc -c <"$work/body")" -le "$max_answer_bytes" ]; then return 0; fi
      retryable=no written=maybe
      ;;
    408 | 429) retryable=yes written=no ;;
    503 | 507)
      # Only the server itself knows; the page of a proxy may hide that the request was sent.
      retryable=yes written=maybe
      if own_jq -es 'length == 1 and (.[0] | type == "object" and (.code | type == "string") and .written == "no")' \
        "$work/body" >/dev/null 2>&1; then written=no; fi
      ;;
    401) retryable=no written=no reason+=" (LEITSTAND_TOKEN prüfen)" ;;
    4??) retryable=no written=no ;;
    5??) retryable=yes written=maybe ;;
    *) retryable=no written=maybe ;;
  esac
  return 1
}

# A random time up to backoff × 2ⁿ, at most 30 s, and the time the server asked for.
pause() {
  sleep "$(awk -v tried="$1" -v backoff="$backoff" -v random="$((RANDOM * 32768 + RANDOM))" -v asked="$retry_after" '
    BEGIN { most = tried > 60 ? 30 : backoff * 2 ^ tried; if (most > 30) most = 30; printf "%.3f", asked + most * random / 2 ^ 30 }')"
}

# 3) One part after the other, each until it is acknowledged.
for part in "$work"/part-*; do
  [ -e "$part" ] || break
  count=$(wc -l <"$part")
  tried=0 perhaps=no sending=yes
  until attempt "$part"; do
    if [ "$written" = maybe ]; then perhaps=maybe; fi
    if [ "$retryable" = no ] || ((tried >= retries)); then
      left=$((total - sent))
      say "✗ Nicht alles gesendet: $sent von $total Events bestätigt, dann (nach $tried Wiederholungen): $reason"
      say "  Weiter mit N=$left und derselben Datei, solange nichts an sie angehängt wurde."
      if [ "$perhaps" = maybe ]; then
        say "  Die nächsten $count Events können schon gespeichert sein; dann stehen sie danach doppelt da."
      fi
      exit 1
    fi
    pause "$tried"
    tried=$((tried + 1))
  done
  sent=$((sent + count)) sending=no
done

if [ "$sent" -ne "$total" ]; then
  say "✗ Nicht alles gesendet: $sent von $total Events bestätigt, dann fehlte ein Teil unter $work"
  exit 1
fi
say "✓ Gesendet: letzte $sent Events aus $(basename "$FILE") → $target"
