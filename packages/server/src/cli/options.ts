import { type Command, InvalidArgumentError } from 'commander'
import { DaemonClient, daemonAddress } from './client.ts'

export function wholeNumber(least: number): (text: string) => number {
  return (text) => {
    const value = Number(text)
    if (!/^\d+$/.test(text) || !Number.isSafeInteger(value) || value < least) {
      throw new InvalidArgumentError(`It must be a whole number of at least ${least}.`)
    }
    return value
  }
}

export function positiveNumber(text: string): number {
  const value = Number(text)
  if (text.trim() === '' || !Number.isFinite(value) || value <= 0) {
    throw new InvalidArgumentError('It must be a number above 0.')
  }
  return value
}

/** Zero is allowed: `--sleep-time 0`, `--ready-timeout 0`. */
export function seconds(text: string): number {
  const value = Number(text)
  if (text.trim() === '' || !Number.isFinite(value) || value < 0) {
    throw new InvalidArgumentError('It must be a number of seconds, 0 or more.')
  }
  return value
}

/** For an option that may be repeated. */
export function collect(text: string, before: readonly string[] | undefined): string[] {
  return [...(before ?? []), text]
}

export interface DaemonFlags {
  readonly daemon?: string
  readonly tokenFile?: string
  readonly json?: boolean
}

/** `--daemon`, `--token-file` and `--json`, as every command that talks to a daemon has them. */
export function withDaemon(command: Command): Command {
  return withJson(command)
    .option(
      '--daemon <url|path>',
      'the daemon: http://HOST:PORT or its Unix socket (default: the private socket)',
    )
    .option('--token-file <file>', 'file with the token of a daemon that listens on TCP')
}

export function withJson(command: Command): Command {
  return command.option('--json', 'one JSON document on stdout and nothing else there')
}

export function clientOf(flags: DaemonFlags): DaemonClient {
  return new DaemonClient(daemonAddress(flags.daemon, flags.tokenFile))
}
