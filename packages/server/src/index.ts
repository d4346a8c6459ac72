export type { DaemonApp } from './daemon/http/app.ts'
export { configureLogging, type LogOptions } from './daemon/log.ts'
export { defaultSocketPath, SERVE_DEFAULTS, type ServeOptions } from './daemon/options.ts'
export { type RunningDaemon, serve } from './daemon/serve.ts'
