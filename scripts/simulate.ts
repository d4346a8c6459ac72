import { simulateSeed } from '../packages/server/src/daemon/simulation/simulate.ts'
const args = process.argv.slice(2)
const at = (name: string) => {
  const i = args.indexOf(name)
  return i < 0 ? undefined : args[i + 1]
}
const one = at('--seed')
if (one !== undefined) {
  const r = simulateSeed(
    Number(one),
    args.includes('--trace') ? { trace: (l) => console.log(l) } : {},
  )
  console.log(r)
} else {
  const from = Number(at('--from') ?? 1),
    n = Number(at('--seeds') ?? 100)
  const t = Date.now()
  const counts: Record<string, number> = {}
  let bad = 0
  for (let s = from; s < from + n; s++) {
    const r = simulateSeed(s)
    counts[r.outcome] = (counts[r.outcome] ?? 0) + 1
    if (r.violation) {
      bad++
      console.log(s, r.violation.slice(0, 300))
      if (bad > 20) break
    }
  }
  console.log(counts, (Date.now() - t) / 1000)
}
