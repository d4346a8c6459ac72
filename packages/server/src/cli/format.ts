const UNITS = ['B', 'KB', 'MB', 'GB', 'TB'] as const

/** `249.0 MB`: decimal units, as rates are given in GB/s. */
export function formatBytes(bytes: number): string {
  let value = bytes
  let unit = 0
  while (value >= 1000 && unit < UNITS.length - 1) {
    value /= 1000
    unit++
  }
  return `${unit === 0 ? value : value.toFixed(1)} ${UNITS[unit]}`
}

/** `0.042 s`, `12.3 s`, `125 s`. */
export function formatSeconds(seconds: number): string {
  const digits = seconds < 10 ? 3 : seconds < 100 ? 1 : 0
  return `${seconds.toFixed(digits)} s`
}

/** GB/s as a number with two digits, empty when there is nothing to divide. */
export function formatRate(bytes: number, seconds: number): string {
  return bytes > 0 && seconds > 0 ? (bytes / seconds / 1e9).toFixed(2) : ''
}

/** `1 rank`, `2 ranks`. */
export function counted(count: number, what: string): string {
  return `${count} ${what}${count === 1 ? '' : 's'}`
}

/** Names come from files: a terminal must not obey what is in them. */
export function printable(text: string): string {
  const hex = (c: string) => c.charCodeAt(0).toString(16).padStart(2, '0')
  return text.replace(/\p{Cc}/gu, (c) => `\\x${hex(c)}`)
}

/** Columns of text; numbers to the right, words to the left. The first row is the head. */
export function formatTable(texts: readonly (readonly string[])[]): string {
  const rows = texts.map((row) => row.map(printable))
  const columns = Math.max(0, ...rows.map((row) => row.length))
  const widths = Array.from({ length: columns }, (_, c) =>
    Math.max(...rows.map((row) => (row[c] ?? '').length)),
  )
  const numeric = widths.map((_, c) =>
    rows
      .slice(1)
      .every((row) => /^[-0-9.,]*( ?(s|B|KB|MB|GB|TB|GB\/s|us|ms|%))?$/.test(row[c] ?? '')),
  )
  const line = (row: readonly string[]) =>
    widths
      .map((width, c) =>
        numeric[c] ? (row[c] ?? '').padStart(width) : (row[c] ?? '').padEnd(width),
      )
      .join('  ')
      .trimEnd()
  return rows.map(line).join('\n')
}
