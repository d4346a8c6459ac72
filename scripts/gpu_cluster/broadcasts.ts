/** Whole updates by NCCL between two daemons, each of which holds a part of the checkpoint. */
import { type Layout, parseLayout } from './layout.ts'
import { compareAll, Pair } from './pair.ts'
import { type Run, type Step, updateSeconds } from './steps.ts'

export function broadcastSteps(run: Run): Step[] {
  return layoutsOf(run).map((layout) => ({
    part: 'a',
    name: layout.name,
    async work(place) {
      const { options, versions, results } = run
      const flags = ['--broadcast', 'nccl']
      const pair = await Pair.start(place, options.devices, layout, { flags })
      await pair.registerParts(versions)
      for (let update = 1; update <= options.updates; update++) {
        place.say(`update ${update} begins`)
        const version = versions.next()
        const { engines } = pair
        const request = { timeout: updateSeconds(run) }
        const seen = await pair.update(`parts-${version.name}`, engines, request)
        const compared = await compareAll(versions, version, engines)
        results.update('a', `${layout.name}, update ${update}`, seen, compared)
      }
    },
  }))
}

function layoutsOf({ options, gpus }: Run): readonly Layout[] {
  const separate = gpus > 1 ? ['1/1'] : []
  return options.layouts ?? [...separate, '1+1', '2+2', '4+4'].map(parseLayout)
}

/** The first that was asked for; else one rank for each daemon, on a GPU of its own where there are two. */
export function firstLayout({ options, gpus }: Run): Layout {
  return options.layouts?.[0] ?? parseLayout(gpus > 1 ? '1/1' : '1+1')
}
