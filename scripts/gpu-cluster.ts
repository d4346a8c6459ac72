/**
 * What several daemons do together on a GPU, which the tests show on the host library: broadcasts by NCCL between daemons, reads of
 * another daemon's memory into a GPU's, an engine that joins, a daemon that is killed. `scripts/gpu-cluster` calls this.
 */
import { openLibrary } from '@ckpt/cuda'
import { PinnedCopies } from '../packages/bench/src/pinned-copies.ts'
import { broadcastSteps } from './gpu_cluster/broadcasts.ts'
import { directSteps } from './gpu_cluster/direct.ts'
import { removeLeftovers } from './gpu_cluster/leftovers.ts'
import { lossSteps } from './gpu_cluster/loss.ts'
import { type Options, type Part, parseOptions, USAGE, UsageError } from './gpu_cluster/options.ts'
import { readSteps } from './gpu_cluster/reads.ts'
import { Results } from './gpu_cluster/results.ts'
import { describe, type Run, runStep, type Step, unlessAborted } from './gpu_cluster/steps.ts'
import { TestVersions } from './gpu_cluster/versions.ts'

const MIB = 2 ** 20
const RATE_MIB_MAX = 1024
const RATE_TIMES = 3

const STEPS: Readonly<Record<Part, (run: Run) => Step[]>> = {
  a: broadcastSteps,
  b: readSteps,
  c: lossSteps,
  d: directSteps,
}

function gpuCount({ devices }: Options): number {
  return devices === 'host' ? 0 : openLibrary({ kind: 'cuda' }).deviceCount()
}

/** Libraries that are opened when they are needed, or why they are not found. */
function libraries({ devices }: Options): string[] {
  const library = openLibrary({ kind: devices })
  const opens: Readonly<Record<string, () => void>> = {
    'NCCL for two ranks on one GPU': () => void library.communicatorId(2, 1),
    UCX: () => library.p2p.close(library.p2p.open('')),
  }
  return Object.entries(opens).map(([name, open]) => {
    try {
      open()
      return `${name}: found`
    } catch (error) {
      return `${name}: ${describe(error)}`
    }
  })
}

/** Of pinned host memory to a device, in GB/s. */
async function pinnedRate({ devices, mib }: Options): Promise<number> {
  await using stack = new AsyncDisposableStack()
  const bytes = Math.min(RATE_MIB_MAX, mib) * MIB
  const copies = new PinnedCopies(stack, devices === 'cuda' ? 'cuda:0' : 'host', openLibrary, bytes)
  for (let time = 0; time < RATE_TIMES; time++) copies.time()
  return copies.gbPerSecond
}

/** Aborted at the first signal that ends a program; the second one ends this at once. */
function interruptedBySignal(): AbortSignal {
  const controller = new AbortController()
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.on(name, () => {
      if (controller.signal.aborted) process.exit(1)
      controller.abort(new Error(`ended by ${name}`))
    })
  }
  return controller.signal
}

async function runAll(options: Options): Promise<boolean> {
  const beganMs = performance.now()
  const { devices, mib, updates } = options
  const results = new Results(options.json, { devices, mib, updates })
  try {
    await runSteps(options, results, beganMs)
  } catch (error) {
    results.fail('-', 'everything', describe(error))
  }
  results.say(`${((performance.now() - beganMs) / 1000).toFixed(1)} s in all`)
  results.end()
  return results.passed
}

async function runSteps(options: Options, results: Results, beganMs: number): Promise<void> {
  const { devices, mib } = options
  const gpus = gpuCount(options)
  results.know({ gpus })
  const interrupted = interruptedBySignal()
  results.say(`${devices === 'host' ? 'host library' : `${gpus} GPUs`}, ${mib} MiB a part`)
  results.say(libraries(options).join('\n'))
  const versions = await unlessAborted(interrupted, TestVersions.write(mib))
  try {
    results.h2dGbPerSecond = await pinnedRate(options)
    const took = ((performance.now() - beganMs) / 1000).toFixed(1)
    results.say(`pinned H2D ${results.h2dGbPerSecond.toFixed(2)} GB/s`)
    results.say(`files written to ${versions.dir}, ${took} s`)
    results.head()
    const endMs = beganMs + options.seconds * 1000
    const run: Run = { options, versions, results, gpus, interrupted, endMs }
    for (const step of options.only.flatMap((part) => STEPS[part](run))) {
      await runStep(run, step)
      interrupted.throwIfAborted()
    }
  } finally {
    versions.remove()
  }
}

process.on('exit', removeLeftovers)
try {
  const options = parseOptions(Bun.argv.slice(2))
  if (options.help) process.stdout.write(USAGE)
  else process.exit((await runAll(options)) ? 0 : 1)
} catch (error) {
  if (!(error instanceof UsageError)) throw error
  process.stderr.write(`gpu-cluster: ${error.message}\n\n${USAGE}`)
  process.exit(2)
}
