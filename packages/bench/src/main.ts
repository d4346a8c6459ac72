#!/usr/bin/env bun
import { ON_PROCESS, runBenches } from './run.ts'

const interrupt = new AbortController()
for (const name of ['SIGINT', 'SIGTERM'] as const) {
  process.once(name, () => interrupt.abort(new Error(`${name}: the run was ended`)))
}
const surroundings = { ...ON_PROCESS, signal: interrupt.signal }
process.exit(await runBenches(process.argv.slice(2), surroundings))
