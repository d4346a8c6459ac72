import type { Command } from 'commander'
import manifest from '../../package.json' with { type: 'json' }
import { DaemonClient, addressText, daemonAddress } from './client.ts'
import type { Check } from './check.ts'
import { EXIT } from './exit.ts'
import { formatTable } from './format.ts'
import { withJson } from './options.ts'
import { print } from './output.ts'

export function addDoctorCommand(program: Command): void {
  withJson(program.command('doctor'))
    .description('what is missing on this machine, and how to fix it')
    .action(async (flags: { json?: boolean }) => {
      const { runChecks } = await import('./doctor-checks.ts')
      const checks = [versions(), ...runChecks(), await daemon()]
      const ok = checks.every((check) => check.state !== 'missing')
      await print(flags.json === true, { ok, checks }, () => checksText(checks, ok))
      process.exitCode = ok ? EXIT.done : EXIT.failed
    })
}

function versions(): Check {
  const found = `ckpt ${manifest.version}, Bun ${Bun.version}, ${process.platform} ${process.arch}`
  if (process.platform === 'linux') return { name: 'versions', state: 'ok', found }
  return {
    name: 'versions',
    state: 'missing',
    found,
    fix: 'use Linux: files, memory and sockets are its own',
  }
}

async function daemon(): Promise<Check> {
  const address = daemonAddress()
  const answers = await new DaemonClient(address).answers()
  const found = `${answers ? 'answers' : 'none'} at ${addressText(address)}`
  return { name: 'daemon', state: 'ok', found }
}

function checksText(checks: readonly Check[], ok: boolean): string {
  const table = formatTable([
    ['what', 'state', 'found'],
    ...checks.map((check) => [check.name, check.state, check.found.split('\n')[0]!]),
  ])
  const fixes = checks
    .filter((check) => check.fix !== undefined)
    .map((check) => `  ${check.name}: ${check.fix}`)
  const verdict = ok ? 'ckpt works here' : 'ckpt does not work here yet'
  return [table, '', ...(fixes.length > 0 ? ['to change that:', ...fixes, ''] : []), verdict].join(
    '\n',
  )
}
