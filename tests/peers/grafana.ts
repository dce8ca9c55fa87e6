// What Grafana takes for a dashboard, for the panels that ours have: a dashboard's JSON that is
// assigned to a `Board` has the keys, words and numbers that Grafana knows, and no others.
//
// In JSON an enum is its word, so all enums are taken for their words here.

import type { Dashboard, FieldConfig, Panel, RowPanel } from "@grafana/schema/dist/types/raw/dashboard/x/types.gen";
import type * as stat from "@grafana/schema/dist/types/raw/composable/stat/panelcfg/x/types.gen";
import type * as states from "@grafana/schema/dist/types/raw/composable/statetimeline/panelcfg/x/types.gen";
import type * as graph from "@grafana/schema/dist/types/raw/composable/timeseries/panelcfg/x/types.gen";

type Json<T> = T extends string
  ? `${T}`
  : T extends number | boolean | null | undefined
    ? T
    : T extends Array<infer U>
      ? Array<Json<U>>
      : T extends object
        ? { [K in keyof T]: Json<T[K]> }
        : T;

type Drawn<Type extends string, Options, Custom> = Json<
  Omit<Panel, "fieldConfig" | "options"> & {
    options: Options;
    fieldConfig: {
      defaults: Omit<FieldConfig, "custom"> & { custom?: Custom };
      overrides: NonNullable<Panel["fieldConfig"]>["overrides"];
    };
  }
> & { type: Type; id: number; title: string; targets: Array<{ refId: string }> };

export type Board = Json<Omit<Dashboard, "panels">> & {
  panels: Array<
    | Json<RowPanel>
    | Drawn<"stat", stat.Options, never>
    | Drawn<"state-timeline", states.Options, states.FieldConfig>
    | Drawn<"timeseries", graph.Options, graph.FieldConfig>
  >;
};
