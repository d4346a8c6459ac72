#!/usr/bin/env bun
import { CkptError } from '@ckpt/core'
import { CommanderError } from 'commander'
import { CommandError, EXIT, exitCodeOf, failureOf, failureText } from './exit.ts'
import { printJson } from './output.ts'
import { createProgram } from './program.ts'

process.exit(await main(process.argv.slice(2)))

async function main(args: readonly string[]): Promise<number> {
  const program = createProgram()
  if (args.length === 0) {
    process.stderr.write(program.helpInformation())
    return EXIT.usage
  }
  try {
    await program.parseAsync(args, { from: 'user' })
    return Number(process.exitCode ?? EXIT.done)
  } catch (error) {
    return await report(error, args.includes('--json'))
  }
}

async function report(thrown: unknown, json: boolean): Promise<number> {
  let error = thrown
  if (error instanceof CommanderError) {
    // --help and --version also end the parser by throwing
    if (error.exitCode === 0) return EXIT.done
    const message = error.message.replace(/^error: /, '')
    error = new CommandError({ code: 'bad_request', message })
  }
  const { failure, details } = failureOf(error)
  if (json) await printJson({ error: failure, ...details })
  else process.stderr.write(failureText(failure))
  // a defect of ours, not an operating error: the place helps to report it
  if (failure.code === 'internal' && error instanceof Error && !(error instanceof CkptError)) {
    process.stderr.write(`${error.stack ?? error}\n`)
  }
  return exitCodeOf(failure.code)
}
