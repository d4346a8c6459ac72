import {
  configureSync,
  getLogger,
  getTextFormatter,
  jsonLinesFormatter,
  type LogLevel,
  type LogRecord,
} from '@logtape/logtape'

/** Logger of everything that the daemon does: `log.info('registered {name}', { name })`. */
export const log = getLogger(['ckpt', 'daemon'])

export interface LogOptions {
  readonly format: 'text' | 'json'
  readonly level: LogLevel
  /** Where a line goes, with its newline; stderr when absent, because stdout belongs to `--json` documents. */
  readonly write?: (line: string) => void
}

/** For people: seconds and rates to four digits. */
function textOf(value: unknown, inspect: (value: unknown) => string): string {
  const isFraction = typeof value === 'number' && Number.isFinite(value) && !Number.isInteger(value)
  return isFraction ? String(Number(value.toPrecision(4))) : inspect(value)
}

/** Turns logging on for this process. A library stays silent, so the daemon never calls it: the CLI does. */
export function configureLogging(options: LogOptions): void {
  const format =
    options.format === 'json'
      ? jsonLinesFormatter
      : getTextFormatter({ timestamp: 'rfc3339', category: '.', value: textOf })
  const write = options.write ?? ((line: string) => void process.stderr.write(line))
  configureSync({
    reset: true,
    sinks: { lines: (record: LogRecord) => write(format(record)) },
    loggers: [
      { category: ['ckpt'], lowestLevel: options.level, sinks: ['lines'] },
      // logtape's own notes, such as that it is configured, are not the user's business
      { category: ['logtape', 'meta'], lowestLevel: 'error', sinks: ['lines'] },
    ],
  })
}
