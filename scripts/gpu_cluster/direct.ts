/** Direct updates of two daemons, each of which holds a part of the checkpoint, and of the follower, which then holds nothing. */
import { firstLayout } from './broadcasts.ts'
import { compareAll, Pair } from './pair.ts'
import { TRANSPORTS } from './reads.ts'
import { type Run, type Step, updateSeconds } from './steps.ts'
import type { Layout } from './layout.ts'

/** The first update of each goes through the ring. */
const MODES = ['pipelined', 'direct', 'direct', 'direct'] as const

export function directSteps(run: Run): Step[] {
  const layouts = run.options.layouts ?? [firstLayout(run)]
  return layouts.map((layout) => ({
    part: 'd',
    name: layout.name,
    work: (place) => directly(run, layout, place),
  }))
}

async function directly(run: Run, layout: Layout, place: Parameters<Step['work']>[0]) {
  const { options, versions, results } = run
  const pair = await Pair.start(place, options.devices, layout, {
    flags: ['--broadcast', 'nccl'],
    engineFlags: ['--direct'],
  })
  const update = async (
    of: 'whole' | 'parts',
    number: number,
    engines: Pair['engines'] | readonly [Pair['engines'][1]],
  ) => {
    place.say(`update ${number} of ${of} begins`)
    const version = versions.next()
    const mode = MODES[number - 1] as (typeof MODES)[number]
    const ranks = engines.flatMap((engine) => [...engine.ranks])
    const request = { timeout: updateSeconds(run), mode, ranks }
    const seen = await pair.update(`${of}-${version.name}`, engines, request)
    const compared = await compareAll(versions, version, engines)
    const reads = mode === 'direct' || of === 'whole'
    const what = `${layout.name}, ${of}, ${mode} ${number}`
    results.update('d', what, seen, compared, reads ? TRANSPORTS : null)
  }
  await pair.registerWhole(versions)
  for (const number of MODES.keys()) await update('whole', number + 1, [pair.engines[1]])
  await pair.registerParts(versions)
  for (const number of MODES.keys()) await update('parts', number + 1, pair.engines)
}
