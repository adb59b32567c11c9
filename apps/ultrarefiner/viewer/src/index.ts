// The mode "UltraRefiner" and its extension, handed to OHIF as objects by its configuration: OHIF itself is not changed.

import type { Masks } from "./masks";
import { Desk } from "./panel";
import { Server } from "./server";
import { Surface } from "./surface";
import { createTools } from "./tools";

declare const window: any;
const ID = "ultrarefiner";
const HOTKEYS = "ohif.hotkeyBindings";
const CINE = "autoCineModalities";

let desk: Desk | null = null;
let leave: (() => void)[] = [];

function client(): string {
  // The worklist's Next sample hands an image to a client: this one, from then on.
  const kept = new URLSearchParams(window.location.search).get("client") ?? sessionStorage.getItem(ID);
  const name = kept ?? `viewer-${Math.random().toString(36).slice(2, 10)}`;
  sessionStorage.setItem(ID, name);
  return name;
}

// A React element made by hand: React itself is inside OHIF's bundle.
function element(node: HTMLElement): unknown {
  const ref = (parent: HTMLElement | null) => parent?.replaceChildren(node);
  const props = { style: { height: "100%" } };
  return { $$typeof: Symbol.for("react.element"), type: "div", key: null, ref, props, _owner: null, _store: {} };
}

// place: the part of the address that names study, series and instance, as the server makes it.
function open(place: string): void {
  window.location.assign(`${window.location.pathname}?${place}`);
}

const extension = {
  id: ID,
  preRegistration({ servicesManager }: any): void {
    desk = new Desk(new Surface(servicesManager.services), new Server(client()), open);
  },
  getPanelModule: () => [
    { name: "panel", iconName: "tab-segmentation", iconLabel: "UltraRefiner", label: "UltraRefiner", component: () => element(desk!.node) },
  ],
};

// No player over every still (in 3.10 its button ends in an error), no keys of OHIF's that turn or mirror the picture.
function quieten(customizationService: any): void {
  if (customizationService.addModeCustomizations) customizationService.addModeCustomizations([{ id: CINE, modalities: [] }]);
  else customizationService.setCustomizations({ [CINE]: { $set: [] }, [HOTKEYS]: { $set: [] } });
}

const mode = {
  id: ID,
  routeName: ID,
  displayName: "UltraRefiner",
  isValidMode: ({ modalities }: { modalities: string }) => ({
    valid: modalities.split("\\").includes("US"),
    description: "UltraRefiner outlines lesions on ultrasound",
  }),
  routes: [
    {
      path: ID,
      layoutTemplate: () => ({
        id: "@ohif/extension-default.layoutTemplateModule.viewerLayout",
        props: {
          leftPanels: ["@ohif/extension-default.panelModule.seriesList"],
          leftPanelClosed: true,
          rightPanels: [`${ID}.panelModule.panel`],
          viewports: [
            {
              namespace: "@ohif/extension-cornerstone.viewportModule.cornerstone",
              displaySetsToDisplay: ["@ohif/extension-default.sopClassHandlerModule.stack"],
            },
          ],
        },
      }),
    },
  ],
  extensions: { "@ohif/extension-default": "^3.0.0", "@ohif/extension-cornerstone": "^3.0.0" },
  hangingProtocol: "default",
  sopClassHandlers: ["@ohif/extension-default.sopClassHandlerModule.stack"],
  onModeEnter({ servicesManager, extensionManager }: any): void {
    createTools(servicesManager, extensionManager);
    const { customizationService } = servicesManager.services;
    quieten(customizationService);
    const { displaySetService, viewportGridService, cornerstoneViewportService } = servicesManager.services;
    const events = cornerstoneViewportService.EVENTS;
    let shown = "";
    let kept: Masks | null = null; // what is not saved, when another series was opened by mistake
    const begin = () => {
      const { viewports, activeViewportId } = viewportGridService.getState();
      const uid = viewports.get(activeViewportId)?.displaySetInstanceUIDs?.[0];
      const set = uid && displaySetService.getDisplaySetByUID(uid);
      if (!set || (uid === shown && !kept) || !cornerstoneViewportService.getCornerstoneViewport(activeViewportId)?.getImageIds?.().length) return;
      if (shown && uid !== shown && !desk!.leaves()) {
        kept = desk!.drawing.label().masks;
        viewportGridService.setDisplaySetsForViewport({ viewportId: activeViewportId, displaySetInstanceUIDs: [shown] });
        return;
      }
      shown = uid;
      void desk!.begin(set.StudyInstanceUID, set.SeriesInstanceUID, kept);
      kept = null;
    };
    const ways = [cornerstoneViewportService.subscribe(events.VIEWPORT_DATA_CHANGED, () => setTimeout(begin, 50))];
    leave = ways.map((way) => () => way.unsubscribe());
  },
  onModeExit(): void {
    desk?.end();
    leave.forEach((end) => end());
    leave = [];
  },
};

// OHIF's bar lies over the panel's lower end; the panel says all the time what the bar says once.
window.config.investigationalUseDialog = { option: "never" };
window.config.showStudyList = false; // the worklist is the server's own page
window.config.extensions.push(extension);
window.config.modes.push(mode);
