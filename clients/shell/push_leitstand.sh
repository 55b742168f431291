#!/usr/bin/env bash
# Push die letzten N Meldungen aus einer JSONL/JSON-Stream-Datei sicher zum Leitstand.
#
#   FILE=feed.jsonl URL=http://localhost:8788 DOMAIN=example.com N=100 push_leitstand.sh
#
# FILE    JSON values, one a line or pretty-printed (jq reads them, and jq 1.6 rewrites numbers: 1.10 becomes 1.1)
# URL     base address of the server
# DOMAIN  domain of all events
# N       how many of the last values of FILE to send
# LEITSTAND_TOKEN, else CHRONIK_TOKEN: sent as X-Auth, never on a command line. Without one no header is sent.
# LEITSTAND_TIMEOUT (5), LEITSTAND_RETRIES (3), LEITSTAND_BACKOFF (0.5), or CHRONIK_…: as in clients/PROTOCOL.md.
#
# Exit codes: 0 all sent, 1 not all sent, 2 wrong settings, 127 jq or curl is missing.
set -euo pipefail
export LC_ALL=C

max_event_bytes=1000000
max_request_bytes=524288
max_request_events=1000

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
[[ $token =~ ^([[:graph:]]([[:graph:] ]*[[:graph:]])?)?$ ]] || wrong "$source enthält Zeichen, die kein Header tragen kann"
# The programs that run below need no token in their environment.
export -n LEITSTAND_TOKEN CHRONIK_TOKEN

need() { command -v "$1" >/dev/null 2>&1 || { say "Fehlt: $1"; exit 127; }; }
need jq
need curl

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# 1) One value a line, of these the last N. Everything is looked at before anything is sent.
if ! jq -c . "$FILE" 2>"$work/jq" >"$work/all"; then
  say "✗ Nichts gesendet: $FILE ist kein JSON-Strom: $(head -n 1 "$work/jq")"
  exit 1
fi
tail -n "$((10#$N))" "$work/all" >"$work/lines"
total=$(wc -l <"$work/lines")
target="${URL%/}/v1/ingest?domain=$(jq -rn --arg domain "$DOMAIN" '$domain | @uri')"

# 2) Requests of at most 1,000 events and 512 KiB; an event that is larger than that goes alone.
if ! awk -v events=$max_request_events -v bytes=$max_request_bytes -v most=$max_event_bytes -v directory="$work" '
  length($0) > most { print NR; exit 1 }
  {
    if (part == "" || count >= events || size + length($0) + 1 > bytes) {
      if (part != "") close(part)
      part = sprintf("%s/part-%09d", directory, ++parts); count = size = 0
    }
    print >part; count++; size += length($0) + 1
  }' "$work/lines" >"$work/large"; then
  say "✗ Nichts gesendet: Event $(cat "$work/large") der letzten $total ist größer als $max_event_bytes Bytes. Bitte kürzen."
  exit 1
fi

# Sends one part; 0 if it was acknowledged. Else `reason`, `retryable` and `written` say why.
attempt() {
  local part=$1 code=0 report status connected text
  local -a auth=()
  if [ -n "$token" ]; then
    exec {header}< <(printf 'x-auth: %s\n' "$token")
    auth=(-H "@/dev/fd/$header")
  fi
  : >"$work/body"
  : >"$work/head"
  report=$(curl -sS --no-location --max-time "$timeout" --http1.1 "${auth[@]}" \
    -H 'content-type: application/x-ndjson' -H 'expect:' --data-binary "@$part" \
    -D "$work/head" -o "$work/body" --max-filesize 1000000 \
    -w '%{http_code} %{time_connect}' "$target" 2>"$work/error") || code=$?
  if [ -n "$token" ]; then exec {header}<&-; fi
  read -r status connected <<<"$report" || true
  text=$(head -c 65536 "$work/body" | tr -d '\0')
  retry_after=$(tr -d '\r' <"$work/head" | sed -n 's/^[Rr][Ee][Tt][Rr][Yy]-[Aa][Ff][Tt][Ee][Rr]:[[:space:]]*\([0-9]\{1,9\}\)[[:space:]]*$/\1/p' | tail -n 1)
  retry_after=$((10#${retry_after:-0}))
  if ((retry_after > 60)); then retry_after=0; fi

  if ((code != 0)); then
    reason=$(head -n 1 "$work/error") retryable=yes written=maybe
    case $code in
      5 | 6 | 7 | 35 | 60) written=no ;;
      28) if [[ ! ${connected:-0} =~ [1-9] ]]; then written=no; fi ;;
      2 | 3 | 4 | 23 | 26 | 27 | 43) retryable=no written=no ;;
    esac
    return 1
  fi
  reason="Status $status $(printf '%s' "$text" | head -c 500)"
  case $status in
    200 | 202)
      # White space around it aside; read takes that off.
      read -r -d '' text <<<"$text" || true
      if [ "$text" = ok ]; then return 0; fi
      retryable=no written=maybe
      ;;
    408 | 429 | 503 | 507) retryable=yes written=no ;;
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
sent=0
for part in "$work"/part-*; do
  [ -e "$part" ] || break
  count=$(wc -l <"$part")
  tried=0 perhaps=no
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
  sent=$((sent + count))
done

say "✓ Gesendet: letzte $sent Events aus $(basename "$FILE") → $target"
